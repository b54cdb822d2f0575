"""core/protobuf.py: against hand-made bytes, against itself, and against garbage."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import protobuf
from core.errors import Invalid
from core.prpc import Flag, HexBytes, Int64, Message, Nested, Repeated, Text, UInt32, UInt64


class Inner(Message):
    text = Text(1)
    number = UInt32(2)


class Outer(Message):
    name = Text(1)
    count = UInt32(2)
    big = UInt64(3)
    signed = Int64(4)
    flag = Flag(5)
    data = HexBytes(6)
    inner = Nested(7, Inner)
    inners = Repeated(8, Inner)
    words = Repeated(9, Text(0))
    numbers = Repeated(10, UInt32(0))
    maybe = Text(16, optional=True)


WHOLE = {
    "name": "é",
    "count": 300,
    "big": 2**64 - 1,
    "signed": -2,
    "flag": True,
    "data": "00ff",
    "inner": {"text": "x", "number": 1},
    "inners": [{"text": "a", "number": 2}, {"text": "b", "number": 3}],
    "words": ["p", "q"],
    "numbers": [1, 0],
    "maybe": "",
}


def test_known_bytes_of_the_public_encoding_guide() -> None:
    assert protobuf.encode(Outer, {"count": 150}) == bytes.fromhex("109601")
    assert protobuf.encode(Outer, {"name": "testing"}) == bytes.fromhex("0a0774657374696e67")
    assert protobuf.encode(Inner, {"number": 0, "text": ""}) == b""


def test_every_kind_survives_the_way_there_and_back() -> None:
    assert protobuf.decode(Outer, protobuf.encode(Outer, WHOLE)) == WHOLE


def test_packed_numbers_and_single_ones_read_alike() -> None:
    packed = bytes.fromhex("5203010203")
    single = bytes.fromhex("500150025003")

    assert (
        protobuf.decode(Outer, packed) == protobuf.decode(Outer, single) == {"numbers": [1, 2, 3]}
    )


def test_unknown_fields_are_skipped_and_the_last_scalar_counts() -> None:
    unknown = bytes.fromhex("f80101" + "f90102030405060708090a"[:20] + "0a0161" + "0a0162")

    assert protobuf.decode(Outer, unknown) == {"name": "b"}


@pytest.mark.parametrize(
    ("data", "why"),
    [
        ("0a05", "ends after the message"),
        ("10", "middle of a number"),
        ("10" + "ff" * 11, "more than 10 bytes"),
        ("0001", "no field 0"),
        ("0b", "wire type 3"),
        ("0801", "must have a length"),
        ("0a01ff", "UTF-8"),
        ("1201", "ends after the message"),
        ("120100", "must be a varint"),
        ("3801", "must be a message"),
    ],
)
def test_broken_bytes_are_refused_for_their_reason(data: str, why: str) -> None:
    with pytest.raises(Invalid, match=why):
        protobuf.decode(Outer, bytes.fromhex(data))


def test_deep_nesting_is_refused() -> None:
    class Deep(Message):
        pass

    Deep._declared_fields["deep"] = Nested(1, Deep)
    data = b""
    for _ in range(20):
        data = b"\x0a" + bytes([len(data)]) + data

    with pytest.raises(Invalid, match="too deeply"):
        protobuf.decode(Deep, data)


@given(st.binary(max_size=200))
def test_any_bytes_decode_or_are_refused(data: bytes) -> None:
    try:
        found: dict[str, Any] = protobuf.decode(Outer, data)
    except Invalid:
        return
    assert set(found) <= set(WHOLE)
