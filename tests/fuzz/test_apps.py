"""Requests made by schemathesis out of the document of the apps interface: none is a fault of the service."""

from __future__ import annotations

import contextlib

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from accounts import directory
from models.base import Database
from tests.fuzz.test_vmm import MEANT

EXAMPLES = 6


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_call_fails_whatever_it_is_given(
    app: Flask, database: Database, mode: GenerationMode
) -> None:
    with database.writing() as session:
        user = directory.add_user(session, "ann")
        key = directory.add_token(session, user, name="", made_by="test")[1]
    schema = schemathesis.openapi.from_wsgi("/api-docs/apps.json", app)
    tried: dict[str, int] = {}

    def meets_no_fault(case: schemathesis.Case) -> None:
        tried[case.path] = tried.get(case.path, 0) + 1
        answer = case.call(headers={"X-API-Key": key})
        if answer.status_code not in MEANT:
            case.validate_response(answer, checks=[not_a_server_error])

    for found in schema.get_all_operations():
        some = settings(
            max_examples=EXAMPLES,
            phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
            database=None,
            derandomize=True,
        )
        with contextlib.suppress(Unsatisfiable):  # of a call without arguments nothing can be wrong
            some(given(found.ok().as_strategy(generation_mode=mode))(meets_no_fault))()

    assert len(tried) > (50 if mode is GenerationMode.POSITIVE else 30)
