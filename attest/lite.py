"""TDX registers computed from an image's measurement file: MRTD and RTMR0 to 2 of a VM that runs it.

Source: attestation.md section 3, the lite variant.  QEMU's ACPI tables are not computed: their digests are
taken from the event log, so a verifier knows them only as well as that log.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

import cbor2

from attest import kernel, tdvf
from attest.cursor import Cursor
from attest.errors import Malformed
from attest.eventlog import REGISTER_SIZE, Event, extend
from attest.tdvf import PAGE, Accepted

FILE = "measurement.tdx.cbor"
ACPI_NAMES = ("acpi-loader", "acpi-rsdp", "acpi-tables")
MAX_SIZE = 64 * 1024

_VERSION = 3
# The layout of variables and boot entries that firmware before edk2 2025.05 measures.
OVMF = "pre202505"
_MAX_RANGES = 64


def _sha384(data: bytes) -> bytes:
    return hashlib.sha384(data).digest()


SEPARATOR = _sha384(bytes(4))
# attestation.md section 3: the digests that such firmware measures in every VM.
FIRMWARE_VOLUME = bytes.fromhex(
    "344bc51c980ba621aaa00da3ed7436f7d6e549197dfe699515dfa2c6583d95e6"
    "412af21c097d473155875ffd561d6790"
)
BOOT_0000 = bytes.fromhex(
    "23ada07f5261f12f34a0bd8e46760962d6b4d576a416f1fea1c64bc656b1d28e"
    "acf7047ae6e967c58fd2a98bfa74c298"
)
BOOT_ORDER = _sha384(bytes(2))
BOOT_ACTION = _sha384(b"Calling EFI Application from Boot Option")
EXIT_ACTIONS = (
    _sha384(b"Exit Boot Services Invocation"),
    _sha384(b"Exit Boot Services Returned with Success"),
)
_GLOBAL_VARIABLES = "8be4df61-93ca-11d2-aa0d-00e098032b8c"
_SECURITY_DATABASE = "d719b2cb-3d3a-4596-a3bc-dad00e67656f"


def _variable(guid: str, name: str) -> bytes:
    head = uuid.UUID(guid).bytes_le + struct.pack("<QQ", len(name), 0)
    return _sha384(head + name.encode("utf-16-le"))


# What OVMF measures of secure boot variables that are not set.
VARIABLES = (
    _variable(_GLOBAL_VARIABLES, "SecureBoot"),
    _variable(_GLOBAL_VARIABLES, "PK"),
    _variable(_GLOBAL_VARIABLES, "KEK"),
    _variable(_SECURITY_DATABASE, "db"),
    _variable(_SECURITY_DATABASE, "dbx"),
)


@dataclass(frozen=True)
class Measurement:
    """The content of measurement.tdx.cbor: digests of 48 bytes, and the memory that the firmware accepts."""

    cmdline: bytes
    kernel: bytes
    initrd: bytes
    mrtd_single_pass: bytes
    mrtd_two_pass: bytes
    accepted: Accepted

    def mrtd(self, *, single_pass: bool) -> bytes:
        """MRTD, by the way QEMU adds pages."""
        return self.mrtd_single_pass if single_pass else self.mrtd_two_pass


@dataclass(frozen=True)
class Registers:
    """MRTD and RTMR0 to 2, 48 bytes each."""

    mrtd: bytes
    rtmrs: tuple[bytes, bytes, bytes]


def measure(
    kernel_image: bytes,
    initrd: bytes,
    cmdline: str,
    firmware: bytes,
    memory_size: int = kernel.SPLIT,
) -> Measurement:
    """Measures an image; by default the kernel as loaded with 2 GiB of RAM, or with 2816 MiB and more."""
    table = tdvf.sections(firmware)
    return Measurement(
        # What QEMU's loader appends, as the EFI stub receives it.
        cmdline=_sha384(f"{cmdline} initrd=initrd\0".encode("utf-16-le")),
        kernel=kernel.authenticode(kernel_image, len(initrd), memory_size),
        initrd=_sha384(initrd),
        mrtd_single_pass=tdvf.mrtd(table, single_pass=True),
        mrtd_two_pass=tdvf.mrtd(table, single_pass=False),
        accepted=tdvf.accepted(table),
    )


def encode(measurement: Measurement) -> bytes:
    """The measurement as measurement.tdx.cbor."""
    fields = {
        "version": _VERSION,
        "image": {
            "cmdline_sha384": measurement.cmdline,
            "kernel_authenticode": measurement.kernel,
            "initrd_sha384": measurement.initrd,
        },
        "tdvf": {
            "ovmf": OVMF,
            "mrtd": {
                "single_pass": measurement.mrtd_single_pass,
                "two_pass": measurement.mrtd_two_pass,
            },
            "td_hob": _accepted_to_bytes(measurement.accepted),
        },
    }
    return cbor2.dumps(fields)


def decode(raw: bytes) -> Measurement:
    """Reads a measurement.tdx.cbor; Malformed when it is anything else."""
    top = read_map(raw, FILE)
    if top.get("version") != _VERSION:
        raise Malformed(f"{FILE}: its version is not {_VERSION}")
    image, firmware = _map(top, "image"), _map(top, "tdvf")
    if firmware.get("ovmf") != OVMF:
        raise Malformed(f"{FILE}: firmware of kind {str(firmware.get('ovmf'))[:32]!r} is unknown")
    passes = _map(firmware, "mrtd")
    return Measurement(
        cmdline=_digest(image, "cmdline_sha384"),
        kernel=_digest(image, "kernel_authenticode"),
        initrd=_digest(image, "initrd_sha384"),
        mrtd_single_pass=_digest(passes, "single_pass"),
        mrtd_two_pass=_digest(passes, "two_pass"),
        accepted=_accepted_from_bytes(_bytes(firmware, "td_hob")),
    )


def read_map(raw: bytes, what: str) -> dict[object, object]:
    """A CBOR map of at most 64 KiB and nothing after it; Malformed otherwise."""
    if len(raw) > MAX_SIZE:
        raise Malformed(f"{what}: larger than 64 KiB")
    try:
        value = cbor2.loads(raw, max_depth=8, allow_indefinite=False, allow_duplicate_keys=False)
        # The library reads the first item and leaves what follows it unread.
        is_whole = cbor2.dumps(value) == raw
    except (cbor2.CBORError, ValueError, TypeError, OverflowError):
        value, is_whole = None, False
    if not is_whole or not isinstance(value, dict):
        raise Malformed(f"{what}: not one CBOR map")
    return value


def _map(given: dict[object, object], key: str) -> dict[object, object]:
    value = given.get(key)
    if not isinstance(value, dict):
        raise Malformed(f"{FILE}: {key} must be a map")
    return value


def _bytes(given: dict[object, object], key: str) -> bytes:
    value = given.get(key)
    if not isinstance(value, bytes):
        raise Malformed(f"{FILE}: {key} must be bytes")
    return value


def _digest(given: dict[object, object], key: str) -> bytes:
    value = _bytes(given, key)
    if len(value) != REGISTER_SIZE:
        raise Malformed(f"{FILE}: {key} must be {REGISTER_SIZE} bytes")
    return value


def _accepted_to_bytes(accepted: Accepted) -> bytes:
    base = min(start for start, _ in accepted.ranges) // PAGE
    numbers = [base, accepted.hob // PAGE - base, len(accepted.ranges)]
    for start, size in accepted.ranges:
        numbers += [start // PAGE - base, size // PAGE]
    return b"".join(_varint(number) for number in numbers)


def _accepted_from_bytes(raw: bytes) -> Accepted:
    cursor = Cursor(raw, f"{FILE}: td_hob")
    base, hob, count = (_read_varint(cursor) for _ in range(3))
    if count > _MAX_RANGES:
        raise Malformed(f"{FILE}: td_hob has more than {_MAX_RANGES} ranges")
    ranges = tuple(
        ((base + _read_varint(cursor)) * PAGE, _read_varint(cursor) * PAGE) for _ in range(count)
    )
    if cursor.left:
        raise Malformed(f"{FILE}: td_hob is followed by other bytes")
    return Accepted((base + hob) * PAGE, ranges)


def _varint(value: int) -> bytes:
    digits = []
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes((*digits, value))


def _read_varint(cursor: Cursor) -> int:
    # Five groups of seven bits are more than any page number below 4 GiB needs.
    value = 0
    for shift in range(0, 35, 7):
        digit = cursor.uint(1)
        value |= (digit & 0x7F) << shift
        if digit < 0x80:
            return value
    raise Malformed(f"{cursor.what} has a number that is too large")


def td_hob(accepted: Accepted, memory_size: int) -> bytes:
    """The hand-off block that QEMU writes for the firmware: which memory is accepted and which is not."""
    resources = b"".join(_resource(*entry) for entry in _resources(accepted, memory_size))
    size = _HANDOFF_SIZE + len(resources)
    head = struct.pack("<HHIII", 1, _HANDOFF_SIZE, 0, 9, 0) + bytes(32)
    return head + struct.pack("<Q", accepted.hob + size + 8) + resources


_HANDOFF_SIZE = 56
_SYSTEM_MEMORY, _UNACCEPTED = 0, 7
_ATTRIBUTES = 7
_4_GIB = 2**32


def _resource(kind: int, start: int, length: int) -> bytes:
    return struct.pack("<HHI16sIIQQ", 3, 48, 0, bytes(16), kind, _ATTRIBUTES, start, length)


def _resources(accepted: Accepted, memory_size: int) -> list[tuple[int, int, int]]:
    found, at = [], 0
    for start, size in accepted.ranges:
        if not at <= start or not start + size <= memory_size:
            raise Malformed(f"{FILE}: td_hob has ranges that overlap or lie outside of the memory")
        if at < start:
            found.append((_UNACCEPTED, at, start - at))
        found.append((_SYSTEM_MEMORY, start, size))
        at = start + size
    if memory_size < kernel.SPLIT:
        return [*found, (_UNACCEPTED, at, memory_size - at)]
    low = kernel.LOW_2_GIB
    if at > low:
        raise Malformed(f"{FILE}: td_hob has a range above 2 GiB")
    return [*found, (_UNACCEPTED, at, low - at), (_UNACCEPTED, _4_GIB, memory_size - low)]


def logs(
    measurement: Measurement, memory_size: int, acpi: Sequence[bytes]
) -> tuple[tuple[bytes, ...], tuple[bytes, ...], tuple[bytes, ...]]:
    """The digests of RTMR0 to 2 in measuring order; `acpi` has those of ACPI_NAMES."""
    hob = _sha384(td_hob(measurement.accepted, memory_size))
    return (
        (hob, FIRMWARE_VOLUME, *VARIABLES, SEPARATOR, *acpi, BOOT_ORDER, BOOT_0000),
        (measurement.kernel, BOOT_ACTION, SEPARATOR, *EXIT_ACTIONS),
        (measurement.cmdline, measurement.initrd),
    )


def registers(
    measurement: Measurement, memory_size: int, acpi: Sequence[bytes], *, single_pass: bool
) -> Registers:
    """MRTD and RTMR0 to 2 of a VM with that memory (bytes); `acpi` has the digests of ACPI_NAMES."""
    rtmr0, rtmr1, rtmr2 = logs(measurement, memory_size, acpi)
    return Registers(
        mrtd=measurement.mrtd(single_pass=single_pass),
        rtmrs=(_replayed(rtmr0), _replayed(rtmr1), _replayed(rtmr2)),
    )


def _replayed(digests: Sequence[bytes]) -> bytes:
    register = bytes(REGISTER_SIZE)
    for digest in digests:
        register = extend(register, digest)
    return register


def acpi_digests(events: Sequence[Event]) -> tuple[bytes, ...]:
    """The digests of QEMU's ACPI data in a log, by name; Malformed when the log has not each of them once."""
    found = [event for event in events if event.is_acpi]
    if tuple(event.event for event in found) != ACPI_NAMES:
        raise Malformed("event log: it has no entries acpi-loader, acpi-rsdp and acpi-tables")
    if any(len(event.digest) != REGISTER_SIZE for event in found):
        raise Malformed("event log: an ACPI entry has no digest")
    return tuple(event.digest for event in found)
