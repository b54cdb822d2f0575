"""The firmware's event log of a TDX guest (ACPI table CCEL) as entries of RTMR0 to 2.

Source: TCG PC Client Platform Firmware Profile 1.05 section 10 (crypto agile log), UEFI CC event log
(measurement register 1 is RTMR0); guest-agent.md section 5 for the names of the ACPI entries.
"""

from __future__ import annotations

import struct

from attest.errors import Malformed
from attest.eventlog import ACPI_EVENT_TYPE, ACPI_MARKER, REGISTER_SIZE, Event

_SHA384 = 0x0C
_DIGEST_SIZES = {0x04: 20, 0x0B: 32, _SHA384: 48, 0x0D: 64}
# The unused rest of the table is filled with ones.
_END = 0xFFFFFFFF
_ACPI_NAMES = ("acpi-loader", "acpi-rsdp", "acpi-tables")


def parse(table: bytes) -> tuple[Event, ...]:
    """The log's entries in order, payloads kept; Malformed when the table is cut short."""
    try:
        return _parse(table)
    except (struct.error, KeyError):
        raise Malformed("the firmware's event log is cut short or has an unknown digest") from None


def _parse(table: bytes) -> tuple[Event, ...]:
    # The first entry is in the old form (SHA-1 digest) and only describes the log.
    (size,) = struct.unpack_from("<I", table, 28)
    at = 32 + size
    events: list[Event] = []
    acpi_names = iter(_ACPI_NAMES)
    while at + 8 <= len(table):
        register, event_type = struct.unpack_from("<II", table, at)
        if register == _END:
            break
        digest, at = _sha384_digest(table, at + 8)
        (size,) = struct.unpack_from("<I", table, at)
        payload = table[at + 4 : at + 4 + size]
        if len(payload) != size:
            raise Malformed("the firmware's event log is cut short")
        at += 4 + size
        is_acpi = (register, event_type, payload) == (1, ACPI_EVENT_TYPE, ACPI_MARKER)
        name = next(acpi_names, "") if is_acpi else ""
        if register:
            events.append(Event(register - 1, event_type, digest, name, payload))
    return tuple(events)


def _sha384_digest(table: bytes, at: int) -> tuple[bytes, int]:
    (count,) = struct.unpack_from("<I", table, at)
    at += 4
    found = b""
    for _ in range(count):
        (algorithm,) = struct.unpack_from("<H", table, at)
        size = _DIGEST_SIZES[algorithm]
        if algorithm == _SHA384:
            found = table[at + 2 : at + 2 + size]
        at += 2 + size
    if len(found) != REGISTER_SIZE:
        raise Malformed("the firmware's event log has an entry without a SHA-384 digest")
    return found, at
