"""TDX firmware (TDVF): its section table, what MRTD becomes when QEMU adds it, and the memory it accepts first.

Sources: attestation.md section 3; Intel TDX Virtual Firmware Design Guide, chapter 11.
"""

from __future__ import annotations

import hashlib
import struct
import uuid
from collections.abc import Iterator
from dataclasses import dataclass

from attest import ovmf
from attest.errors import Malformed

PAGE = 4096
MAX_SECTIONS = 64

_METADATA = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
_ENTRY = struct.Struct("<IIQQII")
_TD_HOB, _TEMP_MEM = 2, 3
_EXTEND, _PAGE_AUG = 0b01, 0b10
_CHUNK = 256
# The sections of a firmware that was read have a few MiB; a forged table could claim any memory.
_MAX_MEASURED = 64 * 1024**2


@dataclass(frozen=True)
class Section:
    """One entry of the table: where its bytes are in the file, where they go, and how."""

    content: bytes
    address: int
    size: int
    kind: int
    attributes: int


@dataclass(frozen=True)
class Accepted:
    """What the firmware accepts before it writes its hand-off block: that block's address, page ranges."""

    hob: int
    ranges: tuple[tuple[int, int], ...]


def sections(firmware: bytes) -> tuple[Section, ...]:
    """The sections in table order; Malformed when the file has no table of version 1 or a broken one."""
    entry = ovmf.footer_entry(firmware, _METADATA)
    if len(entry) != 4:
        raise Malformed("firmware: it has no TDX section table")
    offset = int.from_bytes(entry, "little")
    if offset > len(firmware):
        raise Malformed("firmware: its TDX section table lies outside of the file")
    cursor, count = ovmf.section_table(firmware, offset, b"TDVF", "TDX", MAX_SECTIONS)
    found = tuple(_section(firmware, cursor.take(_ENTRY.size)) for _ in range(count))
    if sum(section.size for section in found) > _MAX_MEASURED:
        raise Malformed("firmware: its TDX sections are larger than 64 MiB")
    return found


def _section(firmware: bytes, entry: bytes) -> Section:
    at, size, address, memory_size, kind, attributes = _ENTRY.unpack(entry)
    content = firmware[at : at + size]
    if len(content) != size or size > memory_size or address % PAGE or memory_size % PAGE:
        raise Malformed("firmware: a TDX section is cut short or not made of pages")
    return Section(content, address, memory_size, kind, attributes)


def mrtd(table: tuple[Section, ...], *, single_pass: bool) -> bytes:
    """MRTD (48 bytes): QEMU adds and extends page by page (9.0 and later), or section by section."""
    digest = hashlib.sha384()
    for section in table:
        passes = ((True, True),) if single_pass else ((True, False), (False, True))
        for adds, extends in passes:
            for page in range(0, section.size, PAGE):
                for record in _records(section, page, adds=adds, extends=extends):
                    digest.update(record)
    return digest.digest()


def _records(section: Section, page: int, *, adds: bool, extends: bool) -> Iterator[bytes]:
    if adds and not section.attributes & _PAGE_AUG:
        yield _record(b"MEM.PAGE.ADD", section.address + page)
    if extends and section.attributes & _EXTEND:
        for chunk in range(page, page + PAGE, _CHUNK):
            yield _record(b"MR.EXTEND", section.address + chunk)
            yield section.content[chunk : chunk + _CHUNK].ljust(_CHUNK, b"\0")


def _record(name: bytes, address: int) -> bytes:
    return (name.ljust(16, b"\0") + address.to_bytes(8, "little")).ljust(128, b"\0")


def accepted(table: tuple[Section, ...]) -> Accepted:
    """The ranges that the firmware accepts first; Malformed when no section is for the hand-off block."""
    hob = [section.address for section in table if section.kind == _TD_HOB]
    if not hob:
        raise Malformed("firmware: it has no section for the TD hand-off block")
    ranges = [
        (section.address, section.size) for section in table if section.kind in (_TD_HOB, _TEMP_MEM)
    ]
    return Accepted(hob[0], tuple(sorted(ranges)))
