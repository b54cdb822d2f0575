"""Requests made by schemathesis out of the service's own OpenAPI document: none is a fault of the service."""

from __future__ import annotations

import pytest
import schemathesis
from flask import Flask
from schemathesis import GenerationMode

from tests.common import fuzz

DOCUMENT = "/api-docs/openapi.json"


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_call_fails_whatever_it_is_given(app: Flask, mode: GenerationMode) -> None:
    tried = fuzz.meet_no_fault(app, DOCUMENT, mode, headers={})

    assert len(tried) == len(schemathesis.openapi.from_wsgi(DOCUMENT, app))
