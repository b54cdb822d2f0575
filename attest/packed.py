"""The msgpack form of a versioned attestation, which alone can carry version 2 events and pods.

Source: guest-agent.md section 6.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any

import msgpack

from attest import eventlog
from attest.errors import Malformed, Mismatch
from attest.eventlog import REGISTER_SIZE, RUNTIME_IMR, Event, runtime_event
from attest.evidence import REPORT_DATA_SIZE, Attestation, SnpEvidence, TdxEvidence

VERSION = 1
# An empty list costs one byte on the wire and 56 in memory: the count is bounded, not only the size.
MAX_CONTAINERS = 100_000

_UINT32_MAX = 2**32 - 1
_TDX, _SEV_SNP = "tdx", "sev-snp"
_ELSEWHERE = ("gcp-tdx", "nitro-enclave", "aws-nitro-tpm")
_STACK, _POD = "dstack", "dstack-pod"

_Map = Mapping[str, object]


def starts(raw: bytes) -> bool:
    """Whether the first byte is that of a msgpack map."""
    return raw[:1] != b"" and (0x80 <= raw[0] <= 0x8F or raw[0] in (0xDE, 0xDF))


def encode(attestation: Attestation) -> bytes:
    """The attestation's bytes in msgpack."""
    payload = attestation.report_data_payload
    stack: dict[str, object] = {
        "report_data": attestation.report_data,
        "runtime_events": [_write_runtime(event) for event in attestation.runtime_events],
        "config": attestation.config,
    }
    if payload is not None:
        stack["report_data_payload"] = payload
    whole = {
        "version": VERSION,
        "platform": _write_platform(attestation.platform),
        "stack": {"kind": _STACK if payload is None else _POD, "data": stack},
    }
    packed: bytes = msgpack.packb(whole)
    return packed


def _write_platform(platform: TdxEvidence | SnpEvidence) -> dict[str, object]:
    # The reference writes (and wants to read) these three as lists of numbers.
    if isinstance(platform, TdxEvidence):
        log = [_write_event(event) for event in platform.event_log]
        return {"kind": _TDX, "data": {"quote": list(platform.quote), "event_log": log}}
    data = {
        "report": list(platform.report),
        "cert_chain": [list(certificate) for certificate in platform.cert_chain],
        "mr_config": platform.mr_config,
    }
    return {"kind": _SEV_SNP, "data": data}


def _write_event(event: Event) -> dict[str, object]:
    entry: dict[str, object] = {
        "imr": event.imr,
        "event_type": event.event_type,
        "digest": event.digest,
        "event": event.event,
        "event_payload": event.event_payload,
    }
    if event.version != 1:
        entry["version"] = event.version
        entry["preimage"] = eventlog.preimage(event.event, event.event_payload)
    return entry


def _write_runtime(event: Event) -> dict[str, object]:
    entry: dict[str, object] = {"event": event.event, "payload": event.event_payload}
    if event.version != 1:
        entry["version"] = event.version
    return entry


def decode(raw: bytes) -> Attestation:
    """Reads the msgpack form; Malformed when it is not that, Mismatch when a pod's payload is not bound."""
    whole = _unpack(raw)
    if whole.get("version") != VERSION:
        raise Malformed("attestation: its version is unknown")
    platform = _read_platform(_map(whole, "platform"))
    stack = _map(whole, "stack")
    if stack.get("kind") not in (_STACK, _POD):
        raise Malformed("attestation: its stack is of an unknown kind")
    data = _map(stack, "data")
    report_data = _bytes(data, "report_data")
    if len(report_data) != REPORT_DATA_SIZE:
        raise Malformed("attestation: report_data must have 64 bytes")
    payload = _bytes(data, "report_data_payload") if stack["kind"] == _POD else None
    if payload is not None and hashlib.sha512(b"app-data:" + payload).digest() != report_data:
        raise Mismatch("attestation: its report data does not hash its report data payload")
    runtime = tuple(_read_runtime(entry) for entry in _maps(data, "runtime_events"))
    return Attestation(platform, runtime, report_data, _text(data, "config"), payload)


def _unpack(raw: bytes) -> _Map:
    containers = 0

    def count() -> None:
        nonlocal containers
        containers += 1
        if containers > MAX_CONTAINERS:
            raise Malformed("attestation: too many lists and maps")

    def read_map(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
        count()
        fields = dict(pairs)
        if len(fields) != len(pairs) or not all(isinstance(key, str) for key in fields):
            raise Malformed("attestation: a map has a key twice or one that is no text")
        return fields

    def read_list(items: list[Any]) -> list[Any]:
        count()
        return items

    try:
        whole = msgpack.unpackb(raw, object_pairs_hook=read_map, list_hook=read_list)
    except (ValueError, msgpack.UnpackException):
        raise Malformed("attestation: not valid msgpack, or followed by other bytes") from None
    if not isinstance(whole, dict):
        raise Malformed("attestation: must be a msgpack map")
    return whole


def _read_platform(platform: _Map) -> TdxEvidence | SnpEvidence:
    kind = platform.get("kind")
    if kind in _ELSEWHERE:
        raise Malformed(f"attestation: {kind} evidence is not supported")
    if kind not in (_TDX, _SEV_SNP):
        raise Malformed("attestation: its platform is unknown")
    data = _map(platform, "data")
    if kind == _TDX:
        log = tuple(_read_event(entry) for entry in _maps(data, "event_log"))
        return TdxEvidence(_bytes(data, "quote"), log)
    chain = tuple(_as_bytes(item, "cert_chain") for item in _list(data, "cert_chain"))
    return SnpEvidence(_bytes(data, "report"), chain, _text(data, "mr_config"))


def _read_event(entry: _Map) -> Event:
    event = Event(
        imr=_whole(entry, "imr", RUNTIME_IMR),
        event_type=_whole(entry, "event_type", _UINT32_MAX),
        digest=_bytes(entry, "digest"),
        event=_text(entry, "event"),
        event_payload=_bytes(entry, "event_payload"),
        version=_whole({"version": 1, **entry}, "version", 2),
    )
    if len(event.digest) not in (0, REGISTER_SIZE):
        raise Malformed("attestation: an event has a digest of wrong length")
    preimage = _bytes(entry, "preimage") if "preimage" in entry else None
    eventlog.check_version(event, preimage, "attestation: an event")
    return event


def _read_runtime(entry: _Map) -> Event:
    version = _whole({"version": 1, **entry}, "version", 2)
    return runtime_event(_text(entry, "event"), _bytes(entry, "payload"), version)


def _map(outer: _Map, key: str) -> _Map:
    value = outer.get(key)
    if not isinstance(value, dict):
        raise Malformed(f"attestation: {key} must be a map")
    return value


def _list(outer: _Map, key: str) -> list[object]:
    value = outer.get(key)
    if not isinstance(value, list):
        raise Malformed(f"attestation: {key} must be a list")
    return value


def _maps(outer: _Map, key: str) -> list[_Map]:
    entries: list[_Map] = []
    for entry in _list(outer, key):
        if not isinstance(entry, dict):
            raise Malformed(f"attestation: {key} must be a list of maps")
        entries.append(entry)
    return entries


def _text(outer: _Map, key: str) -> str:
    value = outer.get(key)
    if not isinstance(value, str):
        raise Malformed(f"attestation: {key} must be text")
    return value


def _whole(outer: _Map, key: str, most: int) -> int:
    value = outer.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise Malformed(f"attestation: {key} must be a whole number from 0 to {most}")
    return value


def _bytes(outer: _Map, key: str) -> bytes:
    return _as_bytes(outer.get(key), key)


def _as_bytes(value: object, key: str) -> bytes:
    if isinstance(value, bytes):
        return value
    if not isinstance(value, list) or not all(
        type(item) is int and 0 <= item < 256 for item in value
    ):
        raise Malformed(f"attestation: {key} must be bytes")
    return bytes(value)
