from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest import envelope, packed
from attest.errors import Malformed, Mismatch, VerificationError
from attest.eventlog import ACPI_MARKER, RUNTIME_EVENT_TYPE, Event, preimage, runtime_event
from attest.evidence import Attestation, SnpEvidence, TdxEvidence

EVENT = {"imr": 3, "event_type": RUNTIME_EVENT_TYPE, "digest": b"", "event": "a"}
LOGGED = {**EVENT, "event_payload": b"\1"}
TDX = Attestation(
    TdxEvidence(b"quote", (Event(0, 10, bytes(48), "acpi-rsdp", ACPI_MARKER),)),
    (runtime_event("a", b"\1"), runtime_event("b", b"\2", version=2)),
    bytes(64),
    "{}",
)


def wire(
    platform: object = None, *, stack: object = None, version: object = 1, **data: object
) -> bytes:
    """A legal attestation in msgpack with parts of it changed."""
    fields = {"report_data": bytes(64), "runtime_events": [], "config": "", **data}
    whole = {
        "version": version,
        "platform": platform or {"kind": "tdx", "data": {"quote": b"q", "event_log": []}},
        "stack": stack or {"kind": "dstack", "data": fields},
    }
    return msgpack.packb(whole)


def tdx(**data: object) -> dict[str, object]:
    return {"kind": "tdx", "data": {"quote": b"q", "event_log": [], **data}}


def test_a_tdx_attestation_is_written_in_the_references_shape() -> None:
    shown = msgpack.unpackb(packed.encode(TDX))

    assert list(shown) == ["version", "platform", "stack"]
    assert shown["platform"]["kind"] == "tdx"
    assert shown["platform"]["data"]["quote"] == list(b"quote")
    assert shown["platform"]["data"]["event_log"][0]["event_payload"] == ACPI_MARKER
    assert shown["stack"] == {
        "kind": "dstack",
        "data": {
            "report_data": bytes(64),
            "runtime_events": [
                {"event": "a", "payload": b"\1"},
                {"event": "b", "payload": b"\2", "version": 2},
            ],
            "config": "{}",
        },
    }
    assert packed.decode(packed.encode(TDX)) == TDX


def test_a_version_2_event_of_the_log_carries_its_preimage() -> None:
    event = runtime_event("a", b"\1", version=2)
    attestation = replace(TDX, platform=TdxEvidence(b"q", (event,)))

    raw = packed.encode(attestation)

    [entry] = msgpack.unpackb(raw)["platform"]["data"]["event_log"]
    assert (entry["version"], entry["preimage"]) == (2, preimage("a", b"\1"))
    assert packed.decode(raw) == attestation


def test_a_snp_attestation_comes_back() -> None:
    attestation = replace(TDX, platform=SnpEvidence(b"report", (b"vcek",), "document"))

    assert packed.decode(packed.encode(attestation)) == attestation


@pytest.mark.parametrize("quote", [b"\x00quote\xff", list(b"\x00quote\xff")])
def test_bytes_may_come_as_bin_or_as_a_list_of_numbers(quote: object) -> None:
    platform = packed.decode(wire(tdx(quote=quote))).platform

    assert platform == TdxEvidence(b"\x00quote\xff", ())


def test_numbers_up_to_their_ends_are_read() -> None:
    logged = {**LOGGED, "imr": 0, "event_type": 2**32 - 1, "version": 1}

    [event] = packed.decode(wire(tdx(event_log=[logged]))).event_log

    assert event == Event(0, 2**32 - 1, b"", "a", b"\1")


def test_a_pod_binds_its_payload_by_the_report_data() -> None:
    bound = hashlib.sha512(b"app-data:hello").digest()
    data = {"report_data": bound, "runtime_events": [], "config": ""}
    pod = {"kind": "dstack-pod", "data": {**data, "report_data_payload": b"hello"}}
    forged = {"kind": "dstack-pod", "data": {**data, "report_data_payload": b"hallo"}}

    read = packed.decode(wire(stack=pod))

    assert read.report_data_payload == b"hello"
    assert packed.decode(envelope.encode(read)) == read
    with pytest.raises(Mismatch, match="payload"):
        packed.decode(wire(stack=forged))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"\x81", "msgpack"),
        (b"\x90", "must be a msgpack map"),
        (b"\xc1", "msgpack"),
        (b"\x81\xa1a\xa1a" + b"\0", "other bytes"),
        (b"\x81\x01\x02", "msgpack|no text"),
        (b"\x81\xc4\x01a\x02", "no text"),
        (b"\x82\xa1a\x01\xa1a\x02", "twice"),
        (b"\x81\xa1a\xa1\xff", "msgpack"),
        (b"\x81\xa1a\xd6\xff\0\0\0\0", "version"),
        (b"\x81\xa1a" + b"\x91" * 5000 + b"\xc0", "msgpack"),
        (b"\x80", "version"),
        (wire(version=2), "version"),
        (wire(version="1"), "version"),
        (wire({"kind": "tdx", "data": []}), "data must be a map"),
        (wire({"kind": "gcp-tdx", "data": {}}), "gcp-tdx evidence is not supported"),
        (wire({"kind": "nitro-enclave"}), "nitro-enclave evidence"),
        (wire({"kind": "aws-nitro-tpm"}), "aws-nitro-tpm evidence"),
        (wire({"kind": ["tdx"]}), "platform is unknown"),
        (wire({"kind": "other"}), "platform is unknown"),
        (wire(tdx(quote="text")), "quote must be bytes"),
        (wire(tdx(quote=[256])), "quote must be bytes"),
        (wire(tdx(quote=[True])), "quote must be bytes"),
        (wire(tdx(quote=None)), "quote must be bytes"),
        (wire(tdx(event_log={})), "event_log must be a list"),
        (wire(tdx(event_log=[1])), "event_log must be a list of maps"),
        (wire(tdx(event_log=[EVENT])), "event_payload must be bytes"),
        (wire(tdx(event_log=[{**LOGGED, "imr": 4}])), "imr"),
        (wire(tdx(event_log=[{**LOGGED, "imr": True}])), "imr"),
        (wire(tdx(event_log=[{**LOGGED, "event_type": -1}])), "event_type"),
        (wire(tdx(event_log=[{**LOGGED, "event_type": 2**32}])), "event_type"),
        (wire(tdx(event_log=[{**LOGGED, "digest": b"\0"}])), "digest of wrong length"),
        (wire(tdx(event_log=[{**LOGGED, "event": b"a"}])), "event must be text"),
        (wire(tdx(event_log=[{**LOGGED, "version": 2}])), "preimage"),
        (wire(tdx(event_log=[{**LOGGED, "version": 0}])), "version"),
        (wire({"kind": "sev-snp", "data": {"report": b""}}), "cert_chain must be a list"),
        (
            wire({"kind": "sev-snp", "data": {"report": b"", "cert_chain": ["x"]}}),
            "cert_chain must be bytes",
        ),
        (
            wire({"kind": "sev-snp", "data": {"report": b"", "cert_chain": []}}),
            "mr_config must be text",
        ),
        (wire(stack={"kind": "other"}), "unknown kind"),
        (wire(stack={"kind": "dstack"}), "data must be a map"),
        (wire(stack=[1]), "stack must be a map"),
        (wire(report_data=bytes(63)), "64 bytes"),
        (wire(config=1), "config must be text"),
        (wire(runtime_events=[{"event": "a"}]), "payload must be bytes"),
        (wire(runtime_events=[{"event": "a", "payload": b"", "version": 3}]), "version"),
    ],
)
def test_what_breaks_a_rule_is_refused_and_named(raw: bytes, why: str) -> None:
    with pytest.raises(VerificationError, match=why):
        packed.decode(raw)


def test_more_lists_than_any_attestation_has_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # The whole, platform, its data, an empty log, stack, its data, no runtime events.
    monkeypatch.setattr(packed, "MAX_CONTAINERS", 7)
    assert packed.decode(wire()).event_log == ()
    monkeypatch.setattr(packed, "MAX_CONTAINERS", 6)
    with pytest.raises(Malformed, match="too many"):
        packed.decode(wire())


def test_many_empty_lists_are_refused_although_they_are_short() -> None:
    raw = b"\x81\xa1a\xdd" + (200_000).to_bytes(4, "big") + b"\x90" * 200_000

    with pytest.raises(Malformed, match="too many"):
        packed.decode(raw)


@pytest.mark.parametrize(
    ("first", "is_map"),
    [(0x7F, False), (0x80, True), (0x8F, True), (0x90, False), (0xDE, True), (0xDF, True)],
)
def test_a_map_is_known_by_its_first_byte(first: int, is_map: bool) -> None:
    assert packed.starts(bytes([first])) is is_map
    assert not packed.starts(b"")


json_like = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-5, 300), st.binary(max_size=4), st.text("abk")
    ),
    lambda inner: st.one_of(
        st.lists(inner, max_size=3), st.dictionaries(st.text("abk", max_size=3), inner, max_size=3)
    ),
    max_leaves=6,
)
places = ["version", "platform", "stack", "kind", "data", "quote", "event_log", "runtime_events"]


@given(st.lists(st.tuples(st.sampled_from(places), json_like), max_size=3))
def test_a_changed_attestation_is_read_or_refused(changes: list[tuple[str, Any]]) -> None:
    whole = msgpack.unpackb(wire(tdx(event_log=[LOGGED])))
    for place, value in changes:
        for inner in (whole, whole.get("platform"), whole.get("stack")):
            if isinstance(inner, dict) and place in inner:
                inner[place] = value
            elif isinstance(inner, dict) and isinstance(inner.get("data"), dict):
                inner["data"][place] = value
    try:
        packed.decode(msgpack.packb(whole))
    except VerificationError:
        return
