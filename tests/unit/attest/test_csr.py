"""Certificate requests to a KMS: the published encoding, both versions, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest import csr, eventlog, scale
from attest.csr import CertRequest
from attest.errors import Malformed, VerificationError
from attest.evidence import Attestation, TdxEvidence

EMPTY = Attestation(TdxEvidence(b"", ()), (), bytes(64), "")


def test_the_published_request_is_written_and_read(vector: Callable[[str], bytes]) -> None:
    known: Any = json.loads(vector("known-answers.json"))["csr_v2_scale_upstream"]
    request = CertRequest(
        bytes.fromhex(known["pubkey"]), EMPTY, subject=known["subject"], server_auth=True
    )

    assert request.encode().hex() == known["encoded"]
    assert csr.decode(bytes.fromhex(known["encoded"]), 2) == request


FULL = CertRequest(
    b"key",
    EMPTY,
    subject="app.example",
    org_name="",
    alt_names=("a", "b"),
    client_auth=True,
    ext_quote=True,
    ext_app_info=True,
    not_before=0,
    not_after=2**64 - 1,
)


def test_every_field_survives_a_round_trip() -> None:
    assert csr.decode(FULL.encode(), 2) == FULL


def test_version_1_brings_a_quote_and_its_log(
    vector: Callable[[str], bytes],
) -> None:
    quote = vector("tdx-b0c06f.quote.bin")
    log = eventlog.to_json([eventlog.runtime_event("app-id", b"x")])
    body = b"\1\0\1" + scale.octets(quote) + scale.text(log)
    raw = _until_flags(FULL) + body

    found = csr.decode(raw, 1)

    assert (found.server_auth, found.client_auth, found.ext_quote) == (True, False, True)
    assert (found.ext_app_info, found.not_before, found.not_after) == (False, None, None)
    assert [event.event for event in found.attestation.runtime_events] == ["app-id"]
    with pytest.raises(Malformed, match="followed by"):
        csr.decode(raw + b"x", 1)


def _until_flags(request: CertRequest) -> bytes:
    """Everything of an encoded request that stands before its flags."""
    bare = replace(request, not_before=None, not_after=None)
    flags = bytes([bare.server_auth, bare.client_auth, bare.ext_quote, bare.ext_app_info])
    whole = bare.encode()
    return whole[: whole.rindex(flags + b"\0\0\0\0")]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda raw: raw.replace(b"please", b"kindly"), "first words"),
        (lambda raw: raw[:30], "cut short"),
        (lambda raw: raw + b"x", "followed by"),
        (lambda raw: b"", "cut short"),
        (lambda raw: raw.replace(b"key\1", b"key\2"), "neither 0 nor 1"),
    ],
)
def test_a_broken_request_is_refused(change: Callable[[bytes], bytes], reason: str) -> None:
    with pytest.raises(Malformed, match=reason):
        csr.decode(change(FULL.encode()), 2)


def test_the_number_of_names_is_bounded() -> None:
    request = replace(FULL, alt_names=("a",) * (csr.MAX_ALT_NAMES + 1))

    with pytest.raises(Malformed, match=f"more than {csr.MAX_ALT_NAMES}"):
        csr.decode(request.encode(), 2)


@given(st.binary(max_size=300), st.sampled_from([1, 2]))
def test_no_bytes_do_more_than_be_refused(raw: bytes, version: int) -> None:
    for each in (raw, scale.text(csr.CONFIRM) + raw):
        try:
            csr.decode(each, version)
        except VerificationError:
            continue
