from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest import envelope, packed
from attest.envelope import Attestation, SnpEvidence, TdxEvidence
from attest.errors import Malformed, VerificationError
from attest.eventlog import runtime_event

Read = Callable[[str], bytes]
SNP = Attestation(
    SnpEvidence(b"report", (b"vcek", b"ask"), "document"),
    (runtime_event("app-id", b"\1\2"),),
    bytes(range(64)),
    '{"cpu_count":1}',
)
TDX_HEAD = b"\0\0" + b"\x04q"


@pytest.fixture(scope="module")
def tdx(simulated: Any) -> Attestation:
    runtime = tuple(event for event in simulated.events if event.is_runtime)
    platform = TdxEvidence(simulated.quote, simulated.events)
    return Attestation(platform, runtime, simulated.report_data, "{}")


@pytest.mark.parametrize("name", ["simulator-attestation.bin", "snp-milan.attestation.bin"])
def test_real_attestations_come_back_byte_for_byte(vector: Read, name: str) -> None:
    raw = vector(name)
    attestation = envelope.decode(raw)

    assert envelope.encode(attestation) == raw
    assert [event.event for event in attestation.runtime_events][-1] == "system-ready"


def test_the_layout_of_scale() -> None:
    assert envelope.encode(SNP) == b"".join(
        (
            b"\x00\x03",
            b"\x18report",
            b"\x08\x10vcek\x0cask",
            b"\x20document",
            b"\x04\x18app-id\x08\x01\x02",
            bytes(range(64)),
            b'\x3c{"cpu_count":1}',
        )
    )
    assert envelope.decode(envelope.encode(SNP)) == SNP


def test_a_tdx_attestation_comes_back_from_scale(tdx: Attestation) -> None:
    raw = envelope.encode(tdx)

    assert raw[:2] == b"\0\0"
    assert envelope.decode(raw) == tdx
    assert envelope.decode(envelope.encode(tdx.stripped())) == tdx.stripped()


def test_version_2_events_and_pods_are_written_as_msgpack(tdx: Attestation) -> None:
    newer = runtime_event("app-id", b"x", version=2)
    in_log = replace(tdx, platform=replace(tdx.platform, event_log=(newer,)), runtime_events=())
    in_events = replace(SNP, runtime_events=(newer,))

    for attestation in (in_log, in_events):
        raw = envelope.encode(attestation)
        assert packed.starts(raw)
        assert envelope.decode(raw) == attestation
    assert packed.starts(envelope.encode(replace(SNP, report_data_payload=b"")))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "first byte"),
        (b"\x01", "first byte"),
        (b"\x90", "first byte"),
        (b"\0", "cut short"),
        (b"\0\x01", "GCP TDX"),
        (b"\0\x02", "Nitro enclave"),
        (b"\0\x04", "NitroTPM"),
        (b"\0\x05", "platform 5"),
        (TDX_HEAD + b"\x04" + b"\x04" + bytes(8), "unknown register"),
        (TDX_HEAD + b"\x04" + bytes(8) + b"\x04\xaa\0\0", "wrong length"),
        (TDX_HEAD + b"\xfe\xff\xff\xff", "a list of more than"),
        (b"\0" * 10_485_760, "followed by other bytes"),
        (b"\0" * 10_485_761, "10 MiB"),
    ],
)
def test_what_is_no_attestation_is_refused(raw: bytes, why: str) -> None:
    # A stump of an event is completed so that its own rule speaks.
    if why == "unknown register":
        raw += b"\0\0\0"
    with pytest.raises(Malformed, match=why):
        envelope.decode(raw)


def test_anything_after_the_attestation_is_refused() -> None:
    with pytest.raises(Malformed, match="followed by other bytes"):
        envelope.decode(envelope.encode(SNP) + b"\0")
    with pytest.raises(Malformed, match="followed by other bytes"):
        envelope.decode(packed.encode(SNP) + b"\0")


def test_an_attestation_cut_anywhere_is_refused(tdx: Attestation) -> None:
    for raw in (envelope.encode(SNP), packed.encode(SNP)):
        for size in range(len(raw)):
            with pytest.raises(Malformed):
                envelope.decode(raw[:size])


@given(st.binary(max_size=200), st.sampled_from([b"", b"\0\0", b"\0\x03", b"\x83", b"\xde\0"]))
def test_any_bytes_are_read_or_refused(raw: bytes, start: bytes) -> None:
    try:
        envelope.decode(start + raw)
    except VerificationError:
        return


@given(st.booleans(), st.lists(st.tuples(st.integers(0), st.integers(0, 255)), max_size=5))
def test_a_damaged_attestation_is_read_or_refused(
    in_scale: bool, damage: list[tuple[int, int]]
) -> None:
    raw = bytearray(envelope.encode(SNP) if in_scale else packed.encode(SNP))
    for at, value in damage:
        raw[at % len(raw)] = value
    try:
        read = envelope.decode(bytes(raw))
    except VerificationError:
        return
    if raw[0] == 0:
        assert envelope.encode(read) == bytes(raw)


def test_a_list_longer_than_any_vm_has_is_not_read_in() -> None:
    # SCALE, TDX, an empty quote, and a count of 20,001 events.
    raw = b"\x00\x00\x00" + (20_001 << 2 | 2).to_bytes(4, "little")

    with pytest.raises(Malformed, match="more than 20000"):
        envelope.decode(raw + bytes(10**6))
