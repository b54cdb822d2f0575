from __future__ import annotations

import struct
import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest import ovmf
from attest.errors import Malformed

FOOTER = uuid.UUID("96b582de-1fb2-45f7-baea-a366c55a082d")
ONE, TWO = uuid.UUID(int=1), uuid.UUID(int=2)


def entry(guid: uuid.UUID, data: bytes, size: int | None = None) -> bytes:
    return data + struct.pack("<H", len(data) + 18 if size is None else size) + guid.bytes_le


def firmware(*entries: bytes, size: int | None = None) -> bytes:
    table = b"".join(entries)
    total = len(table) + 18 if size is None else size
    return bytes(64) + table + struct.pack("<H", total) + FOOTER.bytes_le + bytes(32)


def test_entries_are_found_by_name() -> None:
    made = firmware(entry(ONE, b"first"), entry(TWO, b""))

    assert ovmf.footer_entry(made, ONE) == b"first"
    assert ovmf.footer_entry(made, TWO) == b""
    assert ovmf.footer_entry(made, uuid.UUID(int=3)) == b""


@pytest.mark.parametrize(
    ("raw", "why"),
    [
        (b"", "not OVMF"),
        (bytes(49), "not OVMF"),
        (bytes(4096), "not OVMF"),
        (firmware(size=60000), "longer than the file"),
        (firmware(size=17), "longer than the file"),
        (firmware(entry(ONE, b"", size=17)), "broken entry"),
        (firmware(entry(ONE, b"", size=19)), "broken entry"),
        (firmware(b"x"), "broken entry"),
    ],
)
def test_what_is_no_whole_table_is_refused(raw: bytes, why: str) -> None:
    with pytest.raises(Malformed, match=why):
        ovmf.footer_entry(raw, TWO)


@given(st.binary(max_size=200))
def test_any_table_is_read_or_refused(table: bytes) -> None:
    try:
        ovmf.footer_entry(firmware(table), ONE)
    except Malformed as error:
        assert "firmware" in error.message
