"""What is new in a log that is read again and again."""

from __future__ import annotations

import pytest

from apps import inside


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
