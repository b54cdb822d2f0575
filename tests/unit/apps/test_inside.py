"""What is new in a log that is read again and again, and in a state that is watched."""

from __future__ import annotations

import pytest

from apps import inside
from core.errors import NotFound


@pytest.mark.parametrize(
    ("before", "now", "wanted"),
    [
        ("", "a\n", "a\n"),
        ("a\n", "a\n", ""),
        ("a\n", "a\na\n", "a\n"),
        ("a\nb\n", "b\nc\n", "b\nc\n"),
        ("x" * 3000 + "end\n", "x" * 100 + "end\nmore\n", "x" * 100 + "end\nmore\n"),
        ("old\n" + "x" * 2500, "x" * 2500 + "new", "new"),
    ],
)
def test_only_what_is_new_is_told(before: str, now: str, wanted: str) -> None:
    assert inside.fresh(before, now) == wanted


def test_a_followed_log_begins_with_its_last_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inside, "FOLLOW_S", 0)
    texts = iter(["1\n2\n3\n", "1\n2\n3\n4\n", "1\n2\n3\n4\n"])
    looks = iter([False, False, True])

    told = list(inside.followed(lambda: next(texts), 2, lambda: next(looks)))

    assert told == ["2\n3\n", "4\n", ""]


@pytest.mark.parametrize(
    ("seen", "wanted"),
    [
        (["running"], ["state", "complete"]),
        (["starting", "running"], ["state", "state", "complete"]),
        (["stopped"] * 9, ["state", "state", "state", "timeout"]),
        ([], ["error"]),
    ],
)
def test_states_are_told_until_one_is_the_wanted_one_or_the_time_is_over(
    monkeypatch: pytest.MonkeyPatch, seen: list[str], wanted: list[str]
) -> None:
    clock, states = [0.0], iter(seen)
    monkeypatch.setattr(inside.time, "monotonic", lambda: clock[0])
    monkeypatch.setattr(inside.time, "sleep", lambda s: clock.__setitem__(0, clock[0] + s))

    def read() -> dict[str, str]:
        for status in states:
            return {"status": status}
        raise NotFound("it is gone")

    asked = {"target": "running", "interval": 5, "timeout": 10}
    told = list(inside.watched(read, asked, lambda: False))

    assert [each.partition("\n")[0] for each in told] == [f"event: {name}" for name in wanted]
    assert all(each.endswith("\n\n") and "\ndata: {" in each for each in told)
    assert list(inside.watched(read, asked, lambda: True)) == []
