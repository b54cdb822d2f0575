from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attest import scale
from attest.cursor import Cursor
from attest.errors import Malformed


def read(data: bytes) -> int:
    return scale.read_compact(Cursor(data, "thing"))


# The examples of the SCALE specification (docs.polkadot.com, SCALE codec, compact integers).
@pytest.mark.parametrize(
    ("value", "encoded"),
    [(0, "00"), (1, "04"), (42, "a8"), (69, "1501"), (65535, "feff0300"), (2**30 - 1, "feffffff")],
)
def test_compact_integers_match_the_published_examples(value: int, encoded: str) -> None:
    assert scale.compact(value).hex() == encoded
    assert read(bytes.fromhex(encoded)) == value


@pytest.mark.parametrize(
    ("value", "encoded"), [(63, "fc"), (64, "0101"), (16383, "fdff"), (16384, "02000100")]
)
def test_compact_integers_are_as_short_as_they_can_be(value: int, encoded: str) -> None:
    assert scale.compact(value).hex() == encoded


@given(st.integers(0, 2**30 - 1))
def test_every_compact_integer_comes_back(value: int) -> None:
    assert read(scale.compact(value)) == value


@pytest.mark.parametrize(
    "encoded", ["0100", "02000000", "fd00", "fefc0000", "03ffffffff", "", "01"]
)
def test_long_forms_of_short_numbers_big_integers_and_stumps_are_refused(encoded: str) -> None:
    with pytest.raises(Malformed):
        read(bytes.fromhex(encoded))


def test_a_part_too_long_to_be_written_is_refused() -> None:
    with pytest.raises(Malformed, match="too long"):
        scale.compact(2**30)


def test_text_and_octets_come_back() -> None:
    cursor = Cursor(scale.text("grün") + scale.octets(b"\xff") + scale.uint32(7), "thing")

    assert scale.read_text(cursor) == "grün"
    assert scale.read_octets(cursor) == b"\xff"
    assert cursor.rest() == b"\7\0\0\0"


def test_text_that_is_not_utf_8_is_refused() -> None:
    with pytest.raises(Malformed, match="thing: a text is not UTF-8"):
        scale.read_text(Cursor(scale.octets(b"\xff"), "thing"))


def test_a_sequence_begins_with_its_count() -> None:
    assert scale.sequence([b"a", b"b"]) == b"\x08ab"
