"""Requests made by schemathesis out of the SecretVM interface's own document: none is a fault of the service."""

from __future__ import annotations

import contextlib
from dataclasses import replace

import pytest
import schemathesis
from flask import Flask
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error

from core.config import Config
from core.config_secretvm import SecretVmConfig

# These say that something outside is missing (the guest, QEMU, the KMS, the balancer) or is not offered here.
MEANT = {501, 502, 503, 504}
EXAMPLES = 8
TOKEN = "cm_of-the-fuzzer"


@pytest.fixture
def config(config: Config) -> Config:
    many = SecretVmConfig(creates_per_minute=10**6)
    return replace(config, admin_token=TOKEN, secretvm=many)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_call_fails_whatever_it_is_given(app: Flask, mode: GenerationMode) -> None:
    schema = schemathesis.openapi.from_wsgi("/api-docs/secretvm.json", app)
    tried: dict[str, int] = {}

    def meets_no_fault(case: schemathesis.Case) -> None:
        tried[case.path] = tried.get(case.path, 0) + 1
        answer = case.call(headers={"Authorization": f"Bearer {TOKEN}"})
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
        # A call without arguments cannot be made wrongly.
        with contextlib.suppress(Unsatisfiable):
            some(given(found.ok().as_strategy(generation_mode=mode))(meets_no_fault))()

    assert tried.keys() >= {"/api/vm/create", "/api/vm/{vm_id}", "/api/keys"}
