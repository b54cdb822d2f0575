"""What changed between two app-compose texts."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from apps import diffs
from apps.diffs import Line, Part


def text(docker: str, **fields: object) -> str:
    return json.dumps({"name": "web", "docker_compose_file": docker, **fields})


def shown(lines: Sequence[Line]) -> list[str]:
    return [f"{line.kind} {line.before or '-'} {line.after or '-'} {line.text}" for line in lines]


def numbered(count: int) -> str:
    return "".join(f"line {number}\n" for number in range(1, count + 1))


def test_a_file_in_the_document_is_compared_by_its_own_lines() -> None:
    (part,) = diffs.between(text("a:\n  b: 1\n"), text("a:\n  b: 2\n"))

    assert part.name == "docker_compose_file"
    assert shown(part.lines) == ["same 1 1 a:", "out 2 -   b: 1", "in - 2   b: 2"]


def test_what_is_far_from_a_change_is_left_out() -> None:
    (part,) = diffs.between(text(numbered(30)), text(numbered(30).replace("line 15\n", "")))

    assert shown(part.lines) == [
        *("gap - - ", "same 12 12 line 12", "same 13 13 line 13", "same 14 14 line 14"),
        *("out 15 - line 15", "same 16 15 line 16", "same 17 16 line 17", "same 18 17 line 18"),
        "gap - - ",
    ]


def test_other_fields_are_compared_by_theirs() -> None:
    (part,) = diffs.between(text("a\nb"), text("a\nb", gateway_enabled=True))

    assert part.name == "other fields"
    assert [line.text for line in part.lines if line.kind == "in"] == ['  "gateway_enabled": true,']


def test_a_file_that_comes_or_goes_is_shown_whole() -> None:
    (part,) = diffs.between(text("a\nb"), text("a\nb", pre_launch_script="x\ny\n"))

    assert part == Part("pre_launch_script", [Line("in", "x", None, 1), Line("in", "y", None, 2)])


def test_texts_that_mean_the_same_and_hash_otherwise_are_no_same_text() -> None:
    assert diffs.between('{"a": 1}', '{"a":  1}')[0].name == "app-compose.json, letter by letter"
    assert diffs.between('{"a": 1}', '{"a": 1}') == []


def test_what_is_no_document_is_compared_too() -> None:
    (part,) = diffs.between("one\ntwo", text("x\ny"))[:1]

    assert part.name == "app-compose.json"


def test_a_text_made_to_be_slow_is_not() -> None:
    one = "".join(f"{number % 60}\n" for number in range(40_000))
    other = "".join(f"{number % 61}\n" for number in range(40_000))
    began = time.thread_time()

    (part,) = diffs.between(text(one), text(other))

    assert time.thread_time() - began < 5
    assert {line.kind for line in part.lines} <= {"out", "in", "same", "gap"}


lines = st.lists(st.sampled_from(["a", "b", "c", ""]), max_size=12).map("\n".join)


@given(lines, lines)
def test_the_new_text_is_what_stays_and_what_came(before: str, after: str) -> None:
    for part in diffs.between(before, after):
        kept = [line for line in part.lines if line.kind != "gap"]
        for side, other in (("before", "in"), ("after", "out")):
            whole = (before if side == "before" else after).splitlines()
            for line in kept:
                if line.kind != other:
                    assert whole[getattr(line, side) - 1] == line.text
