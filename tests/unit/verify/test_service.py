from __future__ import annotations

import contextlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from attest import collateral, envelope, eventlog
from attest.errors import Malformed, VerificationError
from attest.evidence import TdxEvidence
from core.config import AttestationConfig, Config
from core.errors import CasemateError, Unavailable
from tests.common import evidence
from tests.common.evidence import NOW, TdxVm, platform, processor, snp_attestation
from verify import schemas
from verify.schemas import Request
from verify.service import NONE, Verifier


@pytest.fixture(scope="module")
def root_ca(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("roots") / "root.pem"
    path.write_text(platform().root_ca_pem + processor().root_ca_pem)
    return path


@pytest.fixture
def verifier(root_ca: Path) -> Verifier:
    return Verifier(root_ca, collateral.given(evidence.collateral()))


def pair(**changes: Any) -> Request:
    """The request with quote, log and configuration apart."""
    made = TdxVm().attestation()
    assert isinstance(made.platform, TdxEvidence)
    log = eventlog.to_json(made.platform.event_log)
    return replace(
        Request(quote=made.platform.quote, event_log=log, vm_config=made.config), **changes
    )


def test_both_forms_of_the_same_evidence_are_valid(verifier: Verifier) -> None:
    whole = verifier.verify(Request(attestation=envelope.encode(TdxVm().attestation())), NOW)

    assert whole.reason is None
    assert verifier.verify(pair(), NOW) == whole


def test_snp_evidence_is_valid(verifier: Verifier) -> None:
    found = verifier.verify(Request(attestation=envelope.encode(snp_attestation())), NOW)

    assert found.is_valid


def test_a_lone_quote_is_checked_as_far_as_it_goes(verifier: Verifier) -> None:
    found = verifier.verify(pair(event_log="", vm_config=""), NOW)

    assert found.quote_verified
    assert found.reason == "event log is required"


def test_collateral_of_the_request_wins(root_ca: Path) -> None:
    nothing = Verifier(root_ca, collateral.nowhere)

    assert not nothing.verify(pair(), NOW).is_valid
    assert nothing.verify(pair(collateral=evidence.collateral()), NOW).is_valid


def test_simulated_evidence_is_refused_by_default() -> None:
    found = Verifier(NONE, collateral.given(evidence.collateral())).verify(pair(), NOW)

    assert found.reason == "quote: its certificate chain does not end in the trusted root"


@pytest.mark.parametrize(
    "request_",
    [
        Request(attestation=b"\x05"),
        Request(attestation=envelope.encode(TdxVm().attestation()) + b"\0"),
        Request(attestation=envelope.encode(snp_attestation())[:500]),
        Request(quote=b"\0"),
        Request(quote=b"\0" * 5000),
        pair(event_log="{}"),
    ],
)
def test_evidence_that_cannot_be_read_is_no_outcome(verifier: Verifier, request_: Request) -> None:
    with pytest.raises(Malformed):
        verifier.verify(request_, NOW)


def test_an_event_with_another_preimage_is_an_outcome(verifier: Verifier) -> None:
    event = {"imr": 3, "event_type": 134217729, "digest": "", "event": "x", "event_payload": ""}
    log = json.dumps([{**event, "version": 2, "preimage": "00"}])

    assert "canonical" in str(verifier.verify(pair(event_log=log), NOW).reason)


def test_a_root_that_is_gone_is_no_fault_of_the_evidence(tmp_path: Path) -> None:
    with pytest.raises(Unavailable, match="attestation.root_ca") as refused:
        Verifier(tmp_path / "none.pem", collateral.nowhere).verify(pair(), NOW)
    assert str(tmp_path) not in str(refused.value)
    (tmp_path / "text.pem").write_text("text")
    with pytest.raises(Unavailable, match="not a certificate"):
        Verifier(tmp_path / "text.pem", collateral.nowhere).verify(pair(), NOW)


def test_a_service_goes_by_its_configuration(root_ca: Path, tmp_path: Path) -> None:
    (tmp_path / "collateral.json").write_text(evidence.collateral())
    given = AttestationConfig(root_ca=root_ca, collateral=tmp_path / "collateral.json")

    assert Verifier.of(Config(attestation=given)).verify(pair(), NOW).is_valid
    assert not Verifier.of(Config()).verify(pair(), NOW).is_valid


ENCODED = tuple(envelope.encode(made) for made in (TdxVm().attestation(), snp_attestation()))


@settings(max_examples=150)
@given(st.sampled_from(ENCODED), st.integers(0, 10**6), st.binary(min_size=1, max_size=8))
def test_any_changed_attestation_is_refused_or_cannot_be_read(
    root_ca: Path, raw: bytes, at: int, noise: bytes
) -> None:
    at %= len(raw)
    changed = raw[:at] + noise + raw[at + len(noise) :]
    trusting = Verifier(root_ca, collateral.given(evidence.collateral()))
    try:
        found = trusting.verify(Request(attestation=changed), NOW)
    except VerificationError as error:
        found = None
        assert error.message
    if found is not None and found.is_valid:
        # What may change without harm is not evidence: the names that the firmware gives its entries, fields of
        # vm_config that no step reads, bytes that were the same before.
        assert found.app_info is not None
        assert found.app_info.app_id == evidence.APP_ID


@given(st.dictionaries(st.sampled_from(["attestation", "quote", "event_log"]), st.text()))
def test_any_request_is_answered_or_refused(fields: dict[str, str]) -> None:
    with contextlib.suppress(CasemateError):
        Verifier(NONE, collateral.nowhere).verify(schemas.read(json.dumps(fields).encode()), NOW)
