from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest import mr_config
from attest.errors import Malformed, Mismatch, VerificationError
from attest.mr_config import Identity

APP = Identity(b"\x11" * 20, b"\x22" * 32, b"\x44" * 20)
KMS = ("kms", b"\x33" * 32)


@pytest.fixture
def known(vector: Callable[[str], bytes]) -> dict[str, Any]:
    answers: dict[str, Any] = json.loads(vector("known-answers.json"))
    return answers


def test_version_3_is_the_known_answer(known: dict[str, Any]) -> None:
    answer = known["mr_config_v3_computed"]

    assert mr_config.host_data(answer["document"]).hex() == answer["host_data"]
    assert mr_config.version_3(answer["document"]).hex() == answer["tdx_mr_config_id"]
    assert mr_config.parse(answer["document"]).identity == APP


def test_version_2_is_the_known_answer(known: dict[str, Any]) -> None:
    answer = known["mr_config_v2_computed"]
    made = mr_config.version_2(
        bytes.fromhex(answer["compose_hash"]),
        bytes.fromhex(answer["app_id"]),
        answer["key_provider"],
        bytes.fromhex(answer["key_provider_id"]),
    )

    assert made.hex() == answer["mr_config_id"]


def test_what_binds_the_measured_app_passes() -> None:
    document = json.dumps({"version": 3, "app_id": APP.app_id.hex()})

    mr_config.check(mr_config.version_1(APP.compose_hash), APP, KMS, "")
    mr_config.check(mr_config.version_2(APP.compose_hash, APP.app_id, *KMS), APP, KMS, "")
    mr_config.check(mr_config.version_3(document), APP, KMS, document)
    # Without the document there is nothing to compare.
    mr_config.check(mr_config.version_3(document), APP, KMS, "")


@pytest.mark.parametrize(
    ("mr_config_id", "provider", "document", "why"),
    [
        (mr_config.version_1(bytes(32)), KMS, "", "binds another app"),
        (mr_config.version_1(APP.compose_hash)[:47] + b"\1", KMS, "", "binds another app"),
        (mr_config.version_2(bytes(32), APP.app_id, *KMS), KMS, "", "binds another app"),
        (
            mr_config.version_2(APP.compose_hash, APP.app_id, *KMS),
            ("none", b""),
            "",
            "binds another",
        ),
        (
            mr_config.version_2(APP.compose_hash, APP.app_id, *KMS),
            ("?", b""),
            "",
            "of an unknown form",
        ),
        (mr_config.version_3("{}"), KMS, '{"version":3}', "binds another app"),
        (b"\4".ljust(48, b"\0"), KMS, "", "of an unknown form"),
    ],
)
def test_what_binds_another_app_is_refused(
    mr_config_id: bytes, provider: tuple[str, bytes], document: str, why: str
) -> None:
    with pytest.raises(Mismatch, match=why):
        mr_config.check(mr_config_id, APP, provider, document)


def test_a_document_that_names_another_app_is_refused() -> None:
    document = json.dumps({"version": 3, "app_id": "00" * 20})

    with pytest.raises(Mismatch, match="names another app"):
        mr_config.check(mr_config.version_3(document), APP, KMS, document)


@pytest.mark.parametrize(
    "document",
    [
        "",
        "[]",
        "{}",
        '{"version":2}',
        '{"version":3,"app_id":5}',
        '{"version":3,"app_id":"xy"}',
        '{"version":3,"key_provider":[]}',
        "[" * 100_000,
    ],
)
def test_what_is_no_version_3_document_is_refused(document: str) -> None:
    with pytest.raises(Malformed, match="mr_config"):
        mr_config.parse(document)


@given(st.text())
def test_any_text_is_read_or_refused(document: str) -> None:
    with contextlib.suppress(VerificationError):
        mr_config.parse(document)
    assert len(mr_config.host_data(document)) == 32
