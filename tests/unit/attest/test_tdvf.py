from __future__ import annotations

import hashlib
import struct
import uuid
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest import tdvf
from attest.errors import Malformed
from attest.tdvf import Accepted, Section
from tests.unit.attest.test_ovmf import entry, firmware

METADATA = uuid.UUID("e47a6535-984a-4798-865e-4685a7bf8ec2")
CODE = bytes(range(256)) * 16
# file offset, file size, address, memory size, type, attributes
BFV = (0, 4096, 0xFFFFF000, 4096, 0, 1)
CFV = (0, 0, 0xFFFFE000, 4096, 1, 0)
HOB = (0, 0, 0x809000, 0x2000, 2, 0)
TEMP = (0, 0, 0x800000, 0x1000, 3, 0)
PERM = (0, 0, 0x900000, 0x1000, 4, 2)


def made(*sections: tuple[int, ...], count: int | None = None, **head: Any) -> bytes:
    """Firmware with a section table; its first page is CODE."""
    fields = {"signature": b"TDVF", "version": 1} | head
    number = len(sections) if count is None else count
    table = fields["signature"] + struct.pack("<III", 0, fields["version"], number)
    table += b"".join(struct.pack("<IIQQII", *section) for section in sections)
    end = 18 + 4 + 18 + 32
    return CODE + table + firmware(entry(METADATA, struct.pack("<I", len(table) + 64 + end)))


def test_sections_are_read_in_table_order() -> None:
    found = tdvf.sections(made(BFV, HOB))

    assert found == (
        Section(CODE, 0xFFFFF000, 4096, 0, 1),
        Section(b"", 0x809000, 0x2000, 2, 0),
    )


def record(name: bytes, address: int) -> bytes:
    return name + bytes(16 - len(name)) + struct.pack("<Q", address) + bytes(104)


def test_mrtd_is_the_hash_of_the_records_of_every_page() -> None:
    table = tdvf.sections(made(BFV, CFV, PERM))
    add = record(b"MEM.PAGE.ADD", 0xFFFFF000)
    extends = b"".join(
        record(b"MR.EXTEND", 0xFFFFF000 + at) + CODE[at : at + 256] for at in range(0, 4096, 256)
    )
    other = record(b"MEM.PAGE.ADD", 0xFFFFE000)  # only added; the last section is neither

    expected = hashlib.sha384(add + extends + other).digest()
    assert tdvf.mrtd(table, single_pass=True) == expected
    # A section of one page is the same in both orders.
    assert tdvf.mrtd(table, single_pass=False) == expected


def test_two_passes_add_all_pages_of_a_section_before_extending_any() -> None:
    table = (Section(bytes(4096), 0, 8192, 0, 1),)
    adds = record(b"MEM.PAGE.ADD", 0) + record(b"MEM.PAGE.ADD", 4096)
    extends = b"".join(record(b"MR.EXTEND", at) + bytes(256) for at in range(0, 8192, 256))

    assert tdvf.mrtd(table, single_pass=False) == hashlib.sha384(adds + extends).digest()
    assert tdvf.mrtd(table, single_pass=True) != tdvf.mrtd(table, single_pass=False)


def test_the_hand_off_block_and_temporary_memory_are_accepted_in_address_order() -> None:
    table = tdvf.sections(made(BFV, HOB, TEMP))

    assert tdvf.accepted(table) == Accepted(0x809000, ((0x800000, 0x1000), (0x809000, 0x2000)))


def test_firmware_without_a_place_for_the_hand_off_block_is_refused() -> None:
    with pytest.raises(Malformed, match="hand-off block"):
        tdvf.accepted(tdvf.sections(made(BFV, TEMP)))


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (firmware(), "no TDX section table"),
        (firmware(entry(METADATA, b"\xff\xff\xff\xff")), "outside of the file"),
        (made(signature=b"XXXX"), "unknown form"),
        (made(version=2), "unknown form"),
        (made(count=65), "unknown form"),
        (made(count=9), "cut short"),
        (made((0, 4096, 0x1000, 2048, 0, 0)), "not made of pages"),
        (made((0, 1, 0x1000, 0, 0, 0)), "not made of pages"),
        (made((0, 2**31, 0x1000, 2**31, 0, 0)), "cut short or"),
        (made((0, 0, 0x1001, 4096, 0, 0)), "not made of pages"),
        (made((0, 0, 0x1000, 2**40, 0, 0)), "larger than 64 MiB"),
    ],
)
def test_a_broken_table_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        tdvf.sections(raw)


@given(st.lists(st.tuples(*[st.integers(0, 2**32 - 1)] * 6), max_size=3))
def test_any_table_is_read_or_refused(sections: list[tuple[int, ...]]) -> None:
    try:
        tdvf.sections(made(*sections))
    except Malformed as error:
        assert "firmware" in error.message
