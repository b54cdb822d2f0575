"""Requests made by schemathesis out of the document of the apps interface: none is a fault of the service."""

from __future__ import annotations

import pytest
from flask import Flask
from schemathesis import GenerationMode

from accounts import directory
from models.base import Database
from tests.common import fuzz


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_call_fails_whatever_it_is_given(
    app: Flask, database: Database, mode: GenerationMode
) -> None:
    with database.writing() as session:
        user = directory.add_user(session, "ann")
        key = directory.add_token(session, user, name="", made_by="test")[1]

    tried = fuzz.meet_no_fault(
        app, "/api-docs/apps.json", mode, headers={"X-API-Key": key}, examples=6
    )

    assert len(tried) > (50 if mode is GenerationMode.POSITIVE else 30)
