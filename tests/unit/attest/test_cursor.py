from __future__ import annotations

import pytest

from attest.cursor import Cursor
from attest.errors import Malformed


def test_values_are_taken_in_order_and_little_endian() -> None:
    cursor = Cursor(b"\x01\x02\x03\x04\x05", "thing")

    assert cursor.uint(2) == 0x0201
    assert cursor.take(1) == b"\x03"
    assert cursor.left == 2
    assert cursor.rest() == b"\x04\x05"
    assert cursor.left == 0


def test_taking_more_than_is_left_names_the_document_and_takes_nothing() -> None:
    cursor = Cursor(b"\x01\x02", "thing")

    with pytest.raises(Malformed, match="thing: cut short at byte 2"):
        cursor.take(3)
    assert cursor.left == 2
