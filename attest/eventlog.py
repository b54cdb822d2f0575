"""Event logs of TDX guests: runtime events, replayed registers, and the JSON form of the log.

Source: guest-agent.md section 5; dstack cc-eventlog (312dc605).
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from attest.errors import Malformed, Mismatch

# guest-agent.md section 5: the type of every event that software measures into RTMR3 at run time.
RUNTIME_EVENT_TYPE = 0x08000001
RUNTIME_IMR = 3
REGISTER_SIZE = 48
# attestation.md section 6: no verifier reads a request above 10 MiB.
MAX_JSON_CHARS = 10 * 1024 * 1024
# A log as long as that costs a verifier half a second and some 20 MB; a longer one is no VM's.
MAX_EVENTS = 20_000
# UEFI EV_PLATFORM_CONFIG_FLAGS; OVMF logs the ACPI blobs with this type and marker.
ACPI_EVENT_TYPE = 10
ACPI_MARKER = b"ACPI DATA"

_UINT32_MAX = 2**32 - 1
_HEX = re.compile(r"[0-9a-fA-F]*")


@dataclass(frozen=True)
class Event:
    """One measurement: register 0 to 3, 48-byte digest (empty in stripped logs), name and payload."""

    imr: int
    event_type: int
    digest: bytes
    event: str
    event_payload: bytes
    version: int = 1

    @property
    def is_runtime(self) -> bool:
        """Whether software in the guest measured this event, so that its digest can be recomputed."""
        return self.imr == RUNTIME_IMR and self.event_type == RUNTIME_EVENT_TYPE

    @property
    def is_acpi(self) -> bool:
        """Whether this is one of the firmware's three measurements of ACPI data."""
        return (self.imr, self.event_type, self.event_payload) == (
            0,
            ACPI_EVENT_TYPE,
            ACPI_MARKER,
        )


def runtime_event(name: str, payload: bytes, version: int = 1) -> Event:
    """The RTMR3 event that measuring `name` and `payload` makes.

    Raises Malformed when the name is not valid Unicode or the version is not 1 or 2.
    """
    digest = runtime_digest(name, payload, version)
    return Event(RUNTIME_IMR, RUNTIME_EVENT_TYPE, digest, name, payload, version)


def runtime_digest(name: str, payload: bytes, version: int = 1) -> bytes:
    """The 48-byte digest that a runtime event extends RTMR3 with (guest-agent.md section 5)."""
    if version == 2:
        return hashlib.sha384(preimage(name, payload)).digest()
    if version != 1:
        raise Malformed(f"event log: version {version} of an event is unknown")
    head = RUNTIME_EVENT_TYPE.to_bytes(4, "little")
    return hashlib.sha384(b":".join((head, _utf8(name), payload))).digest()


def preimage(name: str, payload: bytes) -> bytes:
    """What a version 2 event hashes: its RFC 8785 JSON (guest-agent.md section 5)."""
    # Sorted keys, no spaces, and Python's escapes of a string are those of RFC 8785 section 3.2.2.2.
    fields = {"name": name, "payload": payload.hex(), "type": RUNTIME_EVENT_TYPE}
    return _utf8(json.dumps(fields, ensure_ascii=False, separators=(",", ":"), sort_keys=True))


def _utf8(text: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise Malformed("event log: an event name is not valid Unicode") from None


def extend(register: bytes, digest: bytes) -> bytes:
    """The register after one measurement: SHA-384(register || digest), 48 bytes each."""
    return hashlib.sha384(register + digest).digest()


def replay(events: Iterable[Event], imr: int) -> bytes:
    """The value of register `imr` after all its events, from 48 zero bytes.

    The digest of a runtime event is recomputed from its name and payload and never taken from the log.
    Raises Malformed when another event has no 48-byte digest.
    """
    register = bytes(REGISTER_SIZE)
    for event in events:
        if event.imr == imr:
            register = extend(register, _measured(event))
    return register


def _measured(event: Event) -> bytes:
    if event.is_runtime:
        return runtime_digest(event.event, event.event_payload, event.version)
    if len(event.digest) != REGISTER_SIZE:
        raise Malformed(f"event log: an entry of RTMR{event.imr} has no digest to replay")
    return event.digest


def platform_payload(events: Iterable[Event], name: str) -> bytes | None:
    """The payload of the platform's own event `name`, None when it was not measured.

    Looks no further than `system-ready`: what follows was measured by the application, under any name.
    """
    for event in events:
        if event.is_runtime and event.event == name:
            return event.event_payload
        if event.is_runtime and event.event == "system-ready":
            return None
    return None


def until_boot_done(events: Iterable[Event]) -> tuple[Event, ...]:
    """The events up to and including `boot-mr-done`, from which boot-time values are made; else all."""
    taken = []
    for event in events:
        taken.append(event)
        if event.is_runtime and event.event == "boot-mr-done":
            break
    return tuple(taken)


# One log is in all evidence of a boot, until an event is added.
@functools.lru_cache(maxsize=2)
def stripped(events: tuple[Event, ...]) -> tuple[Event, ...]:
    """The log as certificates carry it: runtime events without digest, of the firmware's only ACPI data."""
    return tuple(
        replace(event, digest=b"") if event.is_runtime else event
        for event in events
        if event.is_runtime or event.is_acpi
    )


def to_json(events: Iterable[Event]) -> str:
    """The log as the guest agent answers it: firmware payloads left out, runtime payloads kept."""
    entries = [_entry(event) for event in events]
    return json.dumps(entries, ensure_ascii=False, separators=(",", ":"))


def _entry(event: Event) -> dict[str, object]:
    shown = event.event_payload if event.imr == RUNTIME_IMR or event.is_acpi else b""
    entry: dict[str, object] = {
        "imr": event.imr,
        "event_type": event.event_type,
        "digest": event.digest.hex(),
        "event": event.event,
        "event_payload": shown.hex(),
    }
    if event.version == 2:
        entry["version"] = 2
        entry["preimage"] = preimage(event.event, event.event_payload).hex()
    return entry


def from_json(text: str) -> tuple[Event, ...]:
    """Reads a log that anybody may have written; unknown fields are ignored.

    Digests may be empty (stripped logs).  Raises Malformed for everything that is not a log of at most
    10 MiB, and Mismatch for a version 2 event without its canonical preimage.
    """
    if len(text) > MAX_JSON_CHARS:
        raise Malformed("event log: larger than 10 MiB")
    # Counted before it is read in: ten megabytes of `{},` are a hundred megabytes of objects.
    if text.count("{") > MAX_EVENTS or text.count(",") > 8 * MAX_EVENTS:
        raise Malformed(f"event log: more than {MAX_EVENTS} entries")
    try:
        entries = json.loads(text)
    except (ValueError, RecursionError):
        raise Malformed("event log: not valid JSON") from None
    if not isinstance(entries, list):
        raise Malformed("event log: must be a JSON list")
    return tuple(_read_entry(entry, f"event log entry {i}") for i, entry in enumerate(entries))


def _read_entry(entry: object, where: str) -> Event:
    if not isinstance(entry, dict):
        raise Malformed(f"{where}: must be a JSON object")
    name = entry.get("event")
    if not isinstance(name, str):
        raise Malformed(f"{where}: event must be a string")
    digest = _hex(entry, "digest", where)
    if len(digest) not in (0, REGISTER_SIZE):
        raise Malformed(f"{where}: digest must be 96 hex digits or empty")
    event = Event(
        imr=_whole(entry, "imr", RUNTIME_IMR, where),
        event_type=_whole(entry, "event_type", _UINT32_MAX, where),
        digest=digest,
        event=_utf8(name).decode(),
        event_payload=_hex(entry, "event_payload", where),
        version=_whole({"version": 1, **entry}, "version", 2, where),
    )
    check_version(event, _hex(entry, "preimage", where) if "preimage" in entry else None, where)
    return event


def check_version(event: Event, given_preimage: bytes | None, where: str) -> None:
    """Refuses an event whose version is unknown (Malformed) or whose preimage is another's (Mismatch)."""
    if event.version not in (1, 2):
        raise Malformed(f"{where}: version must be 1 or 2")
    if event.version == 2 and not event.is_runtime:
        raise Malformed(f"{where}: only runtime events of RTMR3 have version 2")
    if event.version == 2 and given_preimage != preimage(event.event, event.event_payload):
        raise Mismatch(f"{where}: preimage is not the canonical form of this event")


def _whole(entry: Mapping[str, object], key: str, most: int, where: str) -> int:
    value = entry.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= most:
        raise Malformed(f"{where}: {key} must be a whole number from 0 to {most}")
    return value


def _hex(entry: Mapping[str, object], key: str, where: str) -> bytes:
    value = entry.get(key)
    if not isinstance(value, str) or len(value) % 2 or not _HEX.fullmatch(value):
        raise Malformed(f"{where}: {key} must be hex text")
    return bytes.fromhex(value)
