from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest.verified import Verified, verify_evidence
from core.errors import CasemateError, Invalid
from tests.common.evidence import APP_ID, TdxVm, snp_attestation, trust
from verify import schemas
from verify.schemas import Request


def read(**fields: Any) -> Request:
    return schemas.read(json.dumps(fields).encode())


def test_the_two_forms_of_evidence() -> None:
    assert read(attestation="0x00FF") == Request(attestation=b"\x00\xff")
    assert read(quote="00", event_log="[]", vm_config="{}", debug=True) == Request(
        quote=b"\0", event_log="[]", vm_config="{}"
    )


def test_an_attestation_wins_and_the_rest_is_not_even_looked_at() -> None:
    found = read(attestation="00", quote=5, event_log={}, vm_config=[], collateral="{}")

    assert found == Request(attestation=b"\0", collateral="{}")


def test_fields_that_are_null_or_empty_are_absent() -> None:
    assert read(attestation=None, quote="00", event_log="", vm_config=None) == Request(quote=b"\0")
    assert read(attestation="", quote="00") == Request(quote=b"\0")


def test_collateral_may_be_the_object_itself() -> None:
    assert json.loads(read(quote="00", collateral={"a": 1}).collateral) == {"a": 1}


@pytest.mark.parametrize(
    ("fields", "why"),
    [
        ({}, "either attestation or quote"),
        ({"event_log": "[]"}, "either attestation or quote"),
        ({"quote": "xyz"}, "quote: must be hex"),
        ({"quote": "0"}, "quote: must be hex"),
        ({"quote": 5}, "quote: must be hex"),
        ({"attestation": "0 0"}, "attestation: must be hex"),
        ({"quote": "00", "event_log": []}, "event_log"),
        ({"quote": "00", "vm_config": {}}, "vm_config"),
        ({"quote": "00", "collateral": 5}, "collateral: must be a JSON text"),
    ],
)
def test_a_bad_field_is_named(fields: dict[str, Any], why: str) -> None:
    with pytest.raises(Invalid, match=why):
        read(**fields)


@pytest.mark.parametrize("body", [b"", b"[]", b"{", b"5", b"\xff", b"\xef\xbb\xbf[]"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(Invalid):
        schemas.read(body)


@given(st.binary(max_size=200))
def test_any_body_is_read_or_refused(body: bytes) -> None:
    with contextlib.suppress(CasemateError):
        schemas.read(body)


def test_the_answer_of_valid_evidence() -> None:
    told: Any = schemas.answer(verify_evidence(TdxVm().attestation(), trust()))

    assert (told["is_valid"], told["reason"]) == (True, None)
    details = told["details"]
    assert details["root"] == "simulated"
    assert details["tee_variant"] == "dstack-tdx"
    assert details["key_provider"] == {"name": "local-sgx", "id": "0102"}
    assert details["app_info"]["app_id"] == APP_ID.hex()
    assert {f"rtmr{imr}" for imr in range(4)} <= details["app_info"].keys()
    assert details["boot_info"]["appId"] == APP_ID.hex()
    json.dumps(told)


def test_a_platform_without_registers_has_empty_ones() -> None:
    told: Any = schemas.answer(verify_evidence(snp_attestation(), trust()))

    assert [told["details"]["app_info"][name] for name in ("mrtd", "rtmr0", "rtmr3")] == [""] * 3


def test_what_was_not_reached_is_null() -> None:
    told: Any = schemas.answer(Verified("dstack-tdx", b"", reason="no"))

    assert (told["is_valid"], told["reason"]) == (False, "no")
    for name in ("root", "tcb_status", "key_provider", "app_info", "boot_info", "os_image_version"):
        assert told["details"][name] is None
