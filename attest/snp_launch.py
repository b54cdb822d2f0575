"""The launch measurement of a SEV-SNP VM, computed from its firmware, kernel, and virtual processors.

Sources: attestation.md section 5; AMD 56860 (SNP Firmware ABI), section 8.17.2 (page info); AMD 24593, appendix
B.4 (save area); EDK II OvmfPkg (metadata, kernel hashes table).
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

import cbor2

from attest import lite, ovmf
from attest.errors import Malformed

FILE = "measurement.snp.cbor"
# Family, model and stepping of the processors that QEMU can show to a guest.
VCPUS = {
    "EPYC": (23, 1, 2),
    "EPYC-v4": (23, 1, 2),
    "EPYC-Rome": (23, 49, 0),
    "EPYC-Milan": (25, 1, 1),
    "EPYC-Genoa": (25, 17, 0),
}

_VERSION = 1
_PAGE = 4096
_4_GIB = 2**32
_MAX_VCPUS = 512
_MAX_SECTIONS = 64
_MAX_SECTION = 64 * 1024**2
_DIGEST = 48
_HASH = 32
_PAGE_INFO_SIZE = 0x70
_NORMAL, _VMSA, _ZERO, _SECRETS, _CPUID = 1, 2, 3, 5, 6
_KERNEL_HASHES = 0x10
# OVMF's section types and the page types that they are added with.
_PAGE_TYPES = {1: _ZERO, 2: _SECRETS, 3: _CPUID, 4: _ZERO, _KERNEL_HASHES: _NORMAL}
_VMSA_ADDRESS = 0xFFFFFFFFF000
_RESET = 0xFFFFFFF0

_SEV_METADATA = uuid.UUID("dc886566-984a-4798-a75e-5585a7bf67cc")
_HASHES_TABLE = uuid.UUID("7255371f-3a3b-4b04-927b-1da6efa8d454")
_AP_RESET = uuid.UUID("00f771de-1a7e-4fcb-890e-68c77e2fb44e")
_TABLE = uuid.UUID("9438d606-4f22-4cc9-b479-a793d411fd21")
_CMDLINE = uuid.UUID("97d02dd8-bd20-4c94-aa78-e7714d36ab2a")
_INITRD = uuid.UUID("44baf731-3a2f-4bd7-9af1-41e29169781d")
_KERNEL = uuid.UUID("4de79437-abd2-427f-b835-d5b172d2045b")


@dataclass(frozen=True)
class Section:
    """Guest pages that the firmware wants prepared: address, size, and OVMF's section type."""

    gpa: int
    size: int
    kind: int


@dataclass(frozen=True)
class Measurement:
    """The content of measurement.snp.cbor: the digest after the firmware's pages, and what follows it."""

    cmdline: str
    ovmf_hash: bytes
    kernel_hash: bytes
    initrd_hash: bytes
    hashes_table_gpa: int
    reset_eip: int
    sections: tuple[Section, ...]


def measure(kernel: bytes, initrd: bytes, cmdline: str, firmware: bytes) -> Measurement:
    """Measures an image with its SEV firmware; Malformed when that cannot carry the kernel's hashes."""
    table = ovmf.footer_entry(firmware, _HASHES_TABLE)
    gpa = int.from_bytes(table[:4], "little")
    if not gpa:
        raise Malformed(
            "firmware: it has no place for the kernel's hashes, so SEV-SNP cannot bind a kernel"
        )
    return Measurement(
        cmdline=cmdline,
        ovmf_hash=_firmware_digest(firmware),
        kernel_hash=hashlib.sha256(kernel).digest(),
        initrd_hash=hashlib.sha256(initrd).digest(),
        hashes_table_gpa=gpa,
        reset_eip=int.from_bytes(ovmf.footer_entry(firmware, _AP_RESET), "little"),
        sections=_firmware_sections(firmware),
    )


def _firmware_digest(firmware: bytes) -> bytes:
    if len(firmware) % _PAGE:
        raise Malformed("firmware: it is not made of whole pages")
    digest, start = bytes(_DIGEST), _4_GIB - len(firmware)
    for at in range(0, len(firmware), _PAGE):
        page = hashlib.sha384(firmware[at : at + _PAGE]).digest()
        digest = _extend(digest, _NORMAL, start + at, page)
    return digest


def _firmware_sections(firmware: bytes) -> tuple[Section, ...]:
    offset = int.from_bytes(ovmf.footer_entry(firmware, _SEV_METADATA), "little")
    if not 0 < offset <= len(firmware):
        raise Malformed("firmware: it has no SEV section table")
    cursor, count = ovmf.section_table(firmware, offset, b"ASEV", "SEV", _MAX_SECTIONS)
    return tuple(Section(cursor.uint(4), cursor.uint(4), cursor.uint(4)) for _ in range(count))


def encode(measurement: Measurement) -> bytes:
    """The measurement as measurement.snp.cbor."""
    sections = [{"gpa": s.gpa, "size": s.size, "type": s.kind} for s in measurement.sections]
    fields = {
        "version": _VERSION,
        "cmdline": measurement.cmdline,
        "ovmf_hash": measurement.ovmf_hash,
        "kernel_hash": measurement.kernel_hash,
        "initrd_hash": measurement.initrd_hash,
        "hashes_table_gpa": measurement.hashes_table_gpa,
        "reset_eip": measurement.reset_eip,
        "ovmf_sections": sections,
    }
    return cbor2.dumps(fields)


def decode(raw: bytes) -> Measurement:
    """Reads a measurement.snp.cbor; Malformed when it is anything else."""
    given = lite.read_map(raw, FILE)
    if given.get("version") != _VERSION:
        raise Malformed(f"{FILE}: its version is not {_VERSION}")
    sections, cmdline = given.get("ovmf_sections"), given.get("cmdline")
    if not isinstance(sections, list) or len(sections) > _MAX_SECTIONS:
        raise Malformed(f"{FILE}: ovmf_sections must be a list of at most {_MAX_SECTIONS}")
    if not isinstance(cmdline, str):
        raise Malformed(f"{FILE}: cmdline must be a string")
    return Measurement(
        cmdline=cmdline,
        ovmf_hash=_bytes(given, "ovmf_hash", _DIGEST),
        kernel_hash=_bytes(given, "kernel_hash", _HASH),
        initrd_hash=_bytes(given, "initrd_hash", _HASH),
        hashes_table_gpa=_whole(given, "hashes_table_gpa"),
        reset_eip=_whole(given, "reset_eip"),
        sections=tuple(_section(section) for section in sections),
    )


def _section(given: object) -> Section:
    if not isinstance(given, dict):
        raise Malformed(f"{FILE}: a section must be a map")
    return Section(*(_whole(given, key) for key in ("gpa", "size", "type")))


def _bytes(given: dict[object, object], key: str, size: int) -> bytes:
    value = given.get(key)
    if not isinstance(value, bytes) or len(value) != size:
        raise Malformed(f"{FILE}: {key} must be {size} bytes")
    return value


def _whole(given: dict[object, object], key: str) -> int:
    value = given.get(key)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < _4_GIB:
        raise Malformed(f"{FILE}: {key} must be a whole number below 2^32")
    return value


def digest(measurement: Measurement, vcpus: int, vcpu_type: str, guest_features: int) -> bytes:
    """MEASUREMENT of the report (48 bytes) of a VM with these virtual processors; Malformed when impossible."""
    if vcpu_type not in VCPUS:
        raise Malformed(f"sev_snp_measurement: vcpu_type must be one of {', '.join(VCPUS)}")
    if not 1 <= vcpus <= _MAX_VCPUS:
        raise Malformed(f"sev_snp_measurement: vcpus must be 1 to {_MAX_VCPUS}")
    value = measurement.ovmf_hash
    for section in measurement.sections:
        for kind, address, contents in _section_pages(section, measurement):
            value = _extend(value, kind, address, contents)
    signature = _cpu_signature(*VCPUS[vcpu_type])
    for number in range(vcpus):
        reset = _RESET if number == 0 else measurement.reset_eip
        page = hashlib.sha384(_vmsa(reset, signature, guest_features)).digest()
        value = _extend(value, _VMSA, _VMSA_ADDRESS, page)
    return value


def _extend(value: bytes, kind: int, address: int, contents: bytes) -> bytes:
    """The digest after one page; `contents` is the page's SHA-384, or zeros where it is not measured."""
    info = struct.pack("<HBBBBBBQ", _PAGE_INFO_SIZE, kind, 0, 0, 0, 0, 0, address)
    return hashlib.sha384(value + contents + info).digest()


def _section_pages(section: Section, measurement: Measurement) -> Iterator[tuple[int, int, bytes]]:
    kind = _PAGE_TYPES.get(section.kind)
    if kind is None or section.size % _PAGE or section.size > _MAX_SECTION:
        raise Malformed(f"{FILE}: a section has an unknown type or size")
    if section.kind == _KERNEL_HASHES:
        yield kind, section.gpa, _kernel_hashes(section, measurement)
        return
    for at in range(0, section.size, _PAGE):
        yield kind, section.gpa + at, bytes(_DIGEST)


def _kernel_hashes(section: Section, measurement: Measurement) -> bytes:
    cmdline = hashlib.sha256(measurement.cmdline.encode(errors="surrogatepass") + b"\0").digest()
    entries = (
        (_CMDLINE, cmdline),
        (_INITRD, measurement.initrd_hash),
        (_KERNEL, measurement.kernel_hash),
    )
    body = b"".join(_entry(guid, value) for guid, value in entries)
    table = _entry(_TABLE, body)
    at = measurement.hashes_table_gpa - section.gpa
    if not 0 <= at <= _PAGE - len(table) or section.size != _PAGE:
        raise Malformed(f"{FILE}: the table of kernel hashes is not inside of its page")
    return hashlib.sha384((bytes(at) + table).ljust(_PAGE, b"\0")).digest()


def _entry(guid: uuid.UUID, value: bytes) -> bytes:
    return guid.bytes_le + struct.pack("<H", 18 + len(value)) + value


def _cpu_signature(family: int, model: int, stepping: int) -> int:
    """CPUID function 1, register EAX; families from 15 on are written in two parts."""
    high = family - 15
    return high << 20 | model >> 4 << 16 | 15 << 8 | (model & 15) << 4 | stepping


def _vmsa(reset: int, cpu_signature: int, guest_features: int) -> bytes:
    """The save area that QEMU starts a virtual processor with, one page."""
    page = bytearray(_PAGE)
    segments = (
        (0x00, 0, 0x93, 0xFFFF, 0),  # es
        (0x10, 0xF000, 0x9B, 0xFFFF, reset & 0xFFFF0000),  # cs
        (0x20, 0, 0x93, 0xFFFF, 0),  # ss
        (0x30, 0, 0x93, 0xFFFF, 0),  # ds
        (0x40, 0, 0x93, 0xFFFF, 0),  # fs
        (0x50, 0, 0x93, 0xFFFF, 0),  # gs
        (0x60, 0, 0, 0xFFFF, 0),  # gdtr
        (0x70, 0, 0x82, 0xFFFF, 0),  # ldtr
        (0x80, 0, 0, 0xFFFF, 0),  # idtr
        (0x90, 0, 0x8B, 0xFFFF, 0),  # tr
    )
    for at, *segment in segments:
        struct.pack_into("<HHIQ", page, at, *segment)
    registers = (
        (0xD0, 0x1000),  # efer: SVME
        (0x148, 0x40),  # cr4: MCE
        (0x158, 0x10),  # cr0
        (0x160, 0x400),  # dr7
        (0x168, 0xFFFF0FF0),  # dr6
        (0x170, 0x2),  # rflags
        (0x178, reset & 0xFFFF),  # rip
        (0x268, 0x7040600070406),  # g_pat
        (0x310, cpu_signature),  # rdx
        (0x3B0, guest_features),  # sev_features
        (0x3E8, 1),  # xcr0
    )
    for at, value in registers:
        struct.pack_into("<Q", page, at, value)
    struct.pack_into("<I", page, 0x408, 0x1F80)  # mxcsr
    struct.pack_into("<H", page, 0x410, 0x37F)  # x87 control word
    return bytes(page)
