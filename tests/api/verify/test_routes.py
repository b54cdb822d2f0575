from __future__ import annotations

import dataclasses
import json
import time
from pathlib import Path

import pytest
from flask.testing import FlaskClient

from app import create_app
from core.config import AttestationConfig, AuthConfig, Config
from tests.common import evidence
from tests.common.evidence import TdxVm, platform
from vmm.host import Host


@pytest.fixture
def verifier(config: Config, host: Host, tmp_path: Path) -> FlaskClient:
    """A service with logins whose verifier trusts the simulated root."""
    (tmp_path / "root.pem").write_text(platform().root_ca_pem)
    (tmp_path / "collateral.json").write_text(platform().collateral_json(int(time.time())))
    given = AttestationConfig(tmp_path / "root.pem", tmp_path / "collateral.json")
    auth = AuthConfig(enabled=True, tokens=("operator",))
    return create_app(dataclasses.replace(config, attestation=given, auth=auth), host).test_client()


def test_a_stranger_may_ask_and_learns_which_root_it_was(verifier: FlaskClient) -> None:
    answer = verifier.post("/verify", json=evidence.request(TdxVm().attestation()))

    assert answer.status_code == 200
    assert answer.json["is_valid"] is True, answer.json
    assert answer.json["details"]["root"] == "simulated"
    assert answer.headers["X-App-Version"]


def test_evidence_that_is_not_valid_is_answered_with_200(verifier: FlaskClient) -> None:
    lone = TdxVm().attestation().platform
    answer = verifier.post("/verify", json={"quote": lone.quote.hex()})  # type: ignore[union-attr]
    assert (answer.status_code, answer.json["is_valid"]) == (200, False)
    assert answer.json["reason"] == "event log is required"
    assert answer.json["details"]["quote_verified"] is True


def test_a_request_cannot_name_a_root_or_a_time(client: FlaskClient) -> None:
    request = evidence.request(
        TdxVm().attestation(),
        collateral=json.loads(evidence.collateral()),
        root_ca=platform().root_ca_pem,
        at=evidence.NOW,
        now=evidence.NOW,
    )
    answer = client.post("/verify", json=request)

    assert answer.status_code == 200
    assert answer.json["reason"] == "quote: its certificate chain does not end in the trusted root"


@pytest.mark.parametrize("body", ["", "[]", "{}", '{"quote": "xyz"}', '{"attestation": "05"}'])
def test_what_cannot_be_read_is_a_400_with_an_error(verifier: FlaskClient, body: str) -> None:
    answer = verifier.post("/verify", data=body)

    assert answer.status_code == 400
    assert list(answer.json) == ["error"]


def test_a_body_above_10_mib_is_refused(verifier: FlaskClient) -> None:
    answer = verifier.post("/verify", data=b"{" + b" " * 10 * 1024**2)

    assert answer.status_code == 413
    assert list(answer.json) == ["error"]


def test_another_method_is_refused(verifier: FlaskClient) -> None:
    answer = verifier.get("/verify", headers={"Authorization": "Bearer operator"})

    assert answer.status_code == 405
    assert list(answer.json) == ["error"]


def test_curls_own_content_type_is_read_as_json(verifier: FlaskClient) -> None:
    body = json.dumps(evidence.request(TdxVm().attestation()))
    answer = verifier.post("/verify", data=body, content_type="application/x-www-form-urlencoded")

    assert answer.json["is_valid"] is True


def test_health_is_open(verifier: FlaskClient) -> None:
    answer = verifier.get("/health")

    assert answer.json == {"status": "ok", "service": "dstack-verifier"}
