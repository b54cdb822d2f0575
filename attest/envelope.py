"""The bytes of a versioned attestation: its SCALE form here, its msgpack form in attest/packed.py.

Source: guest-agent.md section 6.
"""

from __future__ import annotations

import functools

from attest import packed, scale
from attest.cursor import Cursor
from attest.errors import Malformed
from attest.eventlog import MAX_EVENTS, REGISTER_SIZE, RUNTIME_IMR, Event, runtime_event
from attest.evidence import REPORT_DATA_SIZE, Attestation, SnpEvidence, TdxEvidence

__all__ = ["Attestation", "SnpEvidence", "TdxEvidence", "decode", "encode"]

MAX_SIZE = 10 * 1024 * 1024

_SCALE = b"\x00"
_TDX, _SEV_SNP = 0x00, 0x03
_ELSEWHERE = {0x01: "GCP TDX", 0x02: "Nitro enclave", 0x04: "AWS NitroTPM"}


def encode(attestation: Attestation) -> bytes:
    """The attestation's bytes: SCALE, or msgpack where SCALE cannot say it (version 2 events, pods)."""
    events = (*attestation.event_log, *attestation.runtime_events)
    if any(event.version != 1 for event in events) or attestation.report_data_payload is not None:
        return packed.encode(attestation)
    return _to_scale(attestation)


def decode(raw: bytes) -> Attestation:
    """Reads either form; a VerificationError when it is neither, above 10 MiB, or followed by anything."""
    if len(raw) > MAX_SIZE:
        raise Malformed("attestation: larger than 10 MiB")
    if raw[:1] == _SCALE:
        return _from_scale(Cursor(raw, "attestation"))
    if packed.starts(raw):
        return packed.decode(raw)
    raise Malformed("attestation: its first byte is neither SCALE's nor msgpack's")


def _to_scale(attestation: Attestation) -> bytes:
    runtime = [
        scale.text(event.event) + scale.octets(event.event_payload)
        for event in attestation.runtime_events
    ]
    return b"".join(
        (
            _SCALE,
            _platform_to_scale(attestation.platform),
            scale.sequence(runtime),
            attestation.report_data,
            scale.text(attestation.config),
        )
    )


def _platform_to_scale(platform: TdxEvidence | SnpEvidence) -> bytes:
    if isinstance(platform, TdxEvidence):
        return bytes([_TDX]) + scale.octets(platform.quote) + _log_to_scale(platform.event_log)
    certificates = scale.sequence([scale.octets(cert) for cert in platform.cert_chain])
    mr_config = scale.text(platform.mr_config)
    return bytes([_SEV_SNP]) + scale.octets(platform.report) + certificates + mr_config


# As for eventlog.stripped().
@functools.lru_cache(maxsize=2)
def _log_to_scale(events: tuple[Event, ...]) -> bytes:
    return scale.sequence([_event_to_scale(event) for event in events])


def _event_to_scale(event: Event) -> bytes:
    return b"".join(
        (
            scale.uint32(event.imr),
            scale.uint32(event.event_type),
            scale.octets(event.digest),
            scale.text(event.event),
            scale.octets(event.event_payload),
        )
    )


def _from_scale(cursor: Cursor) -> Attestation:
    cursor.take(len(_SCALE))
    platform = _platform_from_scale(cursor)
    runtime = tuple(_runtime_from_scale(cursor) for _ in range(_count(cursor)))
    report_data = cursor.take(REPORT_DATA_SIZE)
    config = scale.read_text(cursor)
    if cursor.left:
        raise Malformed("attestation: followed by other bytes")
    return Attestation(platform, runtime, report_data, config)


def _platform_from_scale(cursor: Cursor) -> TdxEvidence | SnpEvidence:
    kind = cursor.uint(1)
    if kind in _ELSEWHERE:
        raise Malformed(f"attestation: {_ELSEWHERE[kind]} evidence is not supported")
    if kind not in (_TDX, _SEV_SNP):
        raise Malformed(f"attestation: platform {kind} is unknown")
    evidence = scale.read_octets(cursor)
    count = _count(cursor)
    if kind == _TDX:
        return TdxEvidence(evidence, tuple(_event_from_scale(cursor) for _ in range(count)))
    certificates = tuple(scale.read_octets(cursor) for _ in range(count))
    return SnpEvidence(evidence, certificates, scale.read_text(cursor))


def _count(cursor: Cursor) -> int:
    count = scale.read_compact(cursor)
    if count > MAX_EVENTS:
        raise Malformed(f"attestation: a list of more than {MAX_EVENTS}")
    return count


def _event_from_scale(cursor: Cursor) -> Event:
    event = Event(
        imr=cursor.uint(4),
        event_type=cursor.uint(4),
        digest=scale.read_octets(cursor),
        event=scale.read_text(cursor),
        event_payload=scale.read_octets(cursor),
    )
    if event.imr > RUNTIME_IMR or len(event.digest) not in (0, REGISTER_SIZE):
        raise Malformed("attestation: an event has an unknown register or a digest of wrong length")
    return event


def _runtime_from_scale(cursor: Cursor) -> Event:
    return runtime_event(scale.read_text(cursor), scale.read_octets(cursor))
