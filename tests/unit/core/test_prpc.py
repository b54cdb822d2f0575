from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from core import prpc
from core.errors import Invalid, NotFound
from core.prpc import (
    Empty,
    Flag,
    HexBytes,
    Int64,
    Message,
    Nested,
    Repeated,
    Service,
    Text,
    UInt32,
    UInt64,
)


class Leaf(Message):
    name = Text(1)
    size = UInt32(2)


class Everything(Message):
    text = Text(1)
    maybe_text = Text(2, optional=True)
    small = UInt32(3)
    maybe_small = UInt32(4, optional=True)
    large = UInt64(5)
    signed = Int64(6)
    flag = Flag(7)
    maybe_flag = Flag(8, optional=True)
    raw = HexBytes(9)
    maybe_raw = HexBytes(10, optional=True)
    leaf = Nested(11, Leaf)
    leaves = Repeated(12, Leaf, most=3)
    texts = Repeated(13, Text(0))
    numbers = Repeated(14, UInt32(0))


ZERO: dict[str, Any] = {
    "text": "",
    "maybe_text": None,
    "small": 0,
    "maybe_small": None,
    "large": 0,
    "signed": 0,
    "flag": False,
    "maybe_flag": None,
    "raw": b"",
    "maybe_raw": None,
    "leaf": None,
    "leaves": [],
    "texts": [],
    "numbers": [],
}


def test_absent_fields_take_the_zero_value_or_none_when_optional() -> None:
    assert prpc.load(Everything, {}) == ZERO


def test_null_means_absent_for_every_kind() -> None:
    assert prpc.load(Everything, dict.fromkeys(ZERO)) == ZERO


def test_null_means_absent_inside_a_nested_message() -> None:
    loaded = prpc.load(Everything, {"leaf": {"name": None}, "leaves": [{"size": None}]})

    assert loaded["leaf"] == {"name": "", "size": 0}
    assert loaded["leaves"] == [{"name": "", "size": 0}]


def test_unknown_fields_are_ignored_at_every_depth() -> None:
    loaded = prpc.load(Everything, {"swap_size": 3, "leaf": {"name": "a", "colour": "red"}})

    assert loaded == ZERO | {"leaf": {"name": "a", "size": 0}}


@pytest.mark.parametrize(
    ("field", "value", "loaded"),
    [
        ("text", "ä\n\x1b", "ä\n\x1b"),
        ("small", 4294967295, 4294967295),
        ("small", 3.0, 3),
        ("large", 2**64 - 1, 2**64 - 1),
        ("signed", -(2**63), -(2**63)),
        ("signed", 2**63 - 1, 2**63 - 1),
        ("flag", True, True),
        ("maybe_flag", False, False),
        ("raw", "00fF", b"\x00\xff"),
        ("raw", "0x00ff", b"\x00\xff"),
        ("raw", "0X00FF", b"\x00\xff"),
        ("maybe_raw", "", b""),
        ("leaves", [{}, {"name": "b"}], [{"name": "", "size": 0}, {"name": "b", "size": 0}]),
        ("texts", ["a", ""], ["a", ""]),
    ],
)
def test_a_value_of_its_kind_is_taken(field: str, value: object, loaded: object) -> None:
    assert prpc.load(Everything, {field: value}) == ZERO | {field: loaded}


@pytest.mark.parametrize(
    ("field", "value", "name"),
    [
        ("text", 1, "text"),
        ("text", True, "text"),
        ("text", ["a"], "text"),
        ("text", "a\0b", "text"),
        ("text", "\ud800", "text"),
        ("small", -1, "small"),
        ("small", 2**32, "small"),
        ("small", 1.5, "small"),
        ("small", float("inf"), "small"),
        ("small", "1", "small"),
        ("small", "1e9", "small"),
        ("small", True, "small"),
        ("large", 2**64, "large"),
        ("large", -1, "large"),
        ("signed", 2**63, "signed"),
        ("signed", -(2**63) - 1, "signed"),
        ("flag", 1, "flag"),
        ("flag", "true", "flag"),
        ("raw", "abc", "raw"),
        ("raw", "zz", "raw"),
        ("raw", " 00", "raw"),
        ("raw", "0x0x", "raw"),
        ("raw", b"\0", "raw"),
        ("leaf", "a", "leaf"),
        ("leaf", [], "leaf"),
        ("leaf", {"size": "1"}, "leaf.size"),
        ("leaves", {}, "leaves"),
        ("leaves", [3], "leaves[0]"),
        ("leaves", [{}, None], "leaves[1]"),
        ("leaves", [{}, {"size": -1}], "leaves[1].size"),
        ("leaves", [{}] * 4, "leaves"),
        ("texts", ["a", 3], "texts[1]"),
    ],
)
def test_a_refusal_names_the_field(field: str, value: object, name: str) -> None:
    with pytest.raises(Invalid) as refusal:
        prpc.load(Everything, {field: value})

    assert list(refusal.value.fields) == [name]
    assert refusal.value.message.startswith(f"{name}: ")


def test_a_refusal_names_every_bad_field() -> None:
    with pytest.raises(Invalid) as refusal:
        prpc.load(Everything, {"small": -1, "flag": "yes"})

    assert set(refusal.value.fields) == {"small", "flag"}
    assert "; " in refusal.value.message


@pytest.mark.parametrize("body", [None, 1, "a", [], True])
def test_only_an_object_is_a_message(body: object) -> None:
    with pytest.raises(Invalid, match="must be a JSON object"):
        prpc.load(Everything, body)


def test_a_list_that_is_too_long_is_refused_before_its_entries_are_looked_at() -> None:
    entries = [{"name": "a"}] * 300_000

    began = time.process_time()
    with pytest.raises(Invalid, match="leaves: at most 3 entries"):
        prpc.load(Everything, {"leaves": entries})

    assert time.process_time() - began < 0.5


def test_a_message_may_load_into_a_dataclass() -> None:
    @dataclass
    class Thing:
        name: str
        size: int

    class Made(Leaf):
        makes = Thing

    assert prpc.load(Made, {"name": "a"}) == Thing("a", 0)


def test_every_field_is_printed() -> None:
    printed = Everything().dump(ZERO | {"raw": b"\xab", "leaf": {"name": "a", "size": 1}})

    assert printed == ZERO | {"raw": "ab", "leaf": {"name": "a", "size": 1}}
    assert set(printed) == set(ZERO)


@pytest.mark.parametrize("body", [b"", b"  \r\n"])
def test_an_empty_body_is_the_empty_message(body: bytes) -> None:
    assert prpc.read_json(body) == {}


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"name=web",
        b"{'a': 1}",
        b"\xff\xfe",
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b"1" * 5000,
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'"' + b"a" * 100,
    ],
)
def test_a_body_that_is_not_json_is_refused(body: bytes) -> None:
    with pytest.raises(Invalid, match="request body is not (valid JSON|a JSON object)"):
        prpc.read_json(body)


def test_marks_inside_of_texts_are_no_values() -> None:
    text = '{"a": "' + '{[,\\"' * 100_000 + '"}'

    assert prpc.read_json(text.encode()) == {"a": '{[,"' * 100_000}


def test_more_values_than_any_message_has_are_refused() -> None:
    few, many = (b'{"a": [%s0]}' % (b"0," * count) for count in (99_990, 100_000))

    assert len(prpc.read_json(few)["a"]) == 99_991  # type: ignore[index]
    with pytest.raises(Invalid, match="more than 100000 values"):
        prpc.read_json(many)


def test_a_query_string_is_read_by_the_kinds_of_the_fields() -> None:
    pairs = [
        ("text", "1"),
        ("small", "7"),
        ("signed", "-7"),
        ("flag", ""),
        ("maybe_flag", "0"),
        ("raw", "0xab"),
        ("unknown", "x"),
    ]

    loaded = prpc.load(Everything, prpc.read_query(Everything, pairs))

    given = {"text": "1", "small": 7, "signed": -7, "flag": True, "maybe_flag": False}
    assert loaded == ZERO | given | {"raw": b"\xab"}


@pytest.mark.parametrize(
    "keys", [("texts", "texts"), ("texts[]", "texts[]"), ("texts[0]", "texts[1]")]
)
def test_a_list_comes_in_three_forms_of_a_query(keys: tuple[str, str]) -> None:
    read = prpc.read_query(Everything, [(keys[0], "a"), (keys[1], "b")])

    assert read == {"texts": ["a", "b"]}


def test_numbers_in_a_list_of_a_query_are_numbers() -> None:
    assert prpc.read_query(Everything, [("numbers", "1")]) == {"numbers": [1]}


@pytest.mark.parametrize(
    ("key", "text"),
    [("small", "1e9"), ("small", "-1"), ("small", ""), ("flag", "yes"), ("leaf", "a")],
)
def test_a_bad_value_in_a_query_is_refused_by_name(key: str, text: str) -> None:
    with pytest.raises(Invalid, match=f"^{key}: "):
        prpc.load(Everything, prpc.read_query(Everything, [(key, text)]))


def test_an_indexed_scalar_in_a_query_is_no_field() -> None:
    assert prpc.read_query(Everything, [("text[0]", "a")]) == {}


def test_a_query_string_is_read_with_its_escapes_and_empty_values() -> None:
    told = prpc.read_query_string(Everything, b"text=a%20%C3%BC+b&numbers=1&numbers=2")

    assert told == {"text": "a \xfc b", "numbers": [1, 2]}
    assert prpc.read_query_string(Everything, b"text=") == {"text": ""}


@pytest.mark.parametrize("text", [b"text=\xff", b"text=%ff"])
def test_a_query_string_that_is_no_text_is_refused(text: bytes) -> None:
    with pytest.raises(Invalid, match="query string cannot be read"):
        prpc.read_query_string(Everything, text)


def test_a_method_answers_what_its_message_prints() -> None:
    service = Service()

    @service.method("Grow", Leaf, Leaf)
    def grow(leaf: dict[str, Any]) -> dict[str, Any]:
        return {"name": leaf["name"], "size": leaf["size"] + 1, "left_out": 1}

    assert service.find("Grow").call({"name": "a", "size": 1}) == {"name": "a", "size": 2}


def test_a_method_without_an_answer_gives_none() -> None:
    service = Service()
    service.method("Stop", Leaf, Empty)(lambda leaf: {"name": "ignored"})

    assert service.find("Stop").call({}) is None


@pytest.mark.parametrize("path", ["Stop", "Teepod.Stop", "Vmm.Stop"])
def test_a_prefix_before_a_method_is_dropped(path: str) -> None:
    service = Service("Teepod", "Vmm")
    service.method("Stop")(lambda _: None)

    assert service.find(path).name == "Stop"


@pytest.mark.parametrize("path", ["", "stop", "Stop/", "Other.Stop", "Teepod", "../Stop", "Stop\0"])
def test_an_unknown_method_is_not_found(path: str) -> None:
    service = Service("Teepod")
    service.method("Stop")(lambda _: None)

    with pytest.raises(NotFound, match="unknown method"):
        service.find(path)


any_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.text() | st.sampled_from([*ZERO]), inner),
    max_leaves=20,
)


@given(any_json | st.dictionaries(st.sampled_from([*ZERO]), any_json))
def test_any_value_loads_or_is_refused_and_what_loads_is_printed(value: object) -> None:
    try:
        loaded = prpc.load(Everything, value)
    except Invalid as refusal:
        assert refusal.message
        return

    printed = Everything().dump(loaded)
    assert prpc.load(Everything, json.loads(json.dumps(printed))) == loaded


@given(st.binary())
def test_any_bytes_are_json_or_are_refused(body: bytes) -> None:
    try:
        value = prpc.read_json(body)
    except Invalid:
        return

    assert value == (json.loads(body) if body.strip() else {})


@given(st.lists(st.tuples(st.sampled_from([*ZERO, "texts[0]", "x"]) | st.text(), st.text())))
def test_any_query_loads_or_is_refused(pairs: list[tuple[str, str]]) -> None:
    try:
        prpc.load(Everything, prpc.read_query(Everything, pairs))
    except Invalid as refusal:
        assert refusal.message
