"""Requests made by schemathesis out of the SecretVM interface's own document: none is a fault of the service."""

from __future__ import annotations

from dataclasses import replace

import pytest
from flask import Flask
from schemathesis import GenerationMode

from core.config import Config
from core.config_secretvm import SecretVmConfig
from tests.common import fuzz

TOKEN = "cm_of-the-fuzzer"


@pytest.fixture
def config(config: Config) -> Config:
    many = SecretVmConfig(creates_per_minute=10**6)
    return replace(config, admin_token=TOKEN, secretvm=many)


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_no_call_fails_whatever_it_is_given(app: Flask, mode: GenerationMode) -> None:
    tried = fuzz.meet_no_fault(
        app,
        "/api-docs/secretvm.json",
        mode,
        headers={"Authorization": f"Bearer {TOKEN}"},
        meant={501, *fuzz.MISSING},  # 501 says that it is not offered here
    )

    assert tried.keys() >= {"/api/vm/create", "/api/vm/{vm_id}", "/api/keys"}
