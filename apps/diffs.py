"""What changed between two app-compose texts, line by line, as people read it (pure).

The document is JSON with whole files as strings in it: these are compared by their own lines, the rest of the
document by that of its fields.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import SequenceMatcher
from typing import Any

from attest import compose

# Unchanged lines that are shown around a change.
AROUND = 3
# Between the first and the last change; with more, comparing takes longer than anybody waits.
LINES_MOST = 2000
_SAME, _OUT, _IN, _GAP = "same", "out", "in", "gap"


@dataclass(frozen=True)
class Line:
    """One line: the same in both texts, out of the first, in the second, or a gap; its numbers there from 1."""

    kind: str
    text: str
    before: int | None = None
    after: int | None = None


@dataclass(frozen=True)
class Part:
    """One text within the document that changed."""

    name: str
    lines: Sequence[Line]


def between(before: str, after: str) -> list[Part]:
    """The parts of an app-compose text that are not as they were; none when both texts are the same."""
    old, new = _texts(before), _texts(after)
    parts = [
        Part(name, _lines(old.get(name, ""), new.get(name, "")))
        for name in dict.fromkeys((*old, *new))
        if old.get(name) != new.get(name)
    ]
    if not parts and before != after:
        # Another order or other spaces: another hash all the same.
        return [Part("app-compose.json, letter by letter", _lines(before, after))]
    return parts


def _texts(text: str) -> dict[str, str]:
    """The texts within a document: its files by their fields, and what is left of it."""
    document = compose.document_of(text)
    if not document:
        return {"app-compose.json": text}
    files = {name: value for name, value in document.items() if _is_file(value)}
    rest = {name: value for name, value in document.items() if name not in files}
    return {**files, "other fields": _written(rest)}


def _is_file(value: object) -> bool:
    return isinstance(value, str) and "\n" in value


def _written(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, ensure_ascii=False, sort_keys=True)


def _lines(before: str, after: str) -> list[Line]:
    old, new = before.splitlines(), after.splitlines()
    first = _common(old, new)
    last = _common(old[first:][::-1], new[first:][::-1])
    middle = old[first : len(old) - last], new[first : len(new) - last]
    changed = list(_changed(*middle, first)) if max(map(len, middle)) <= LINES_MOST else None
    if changed is None:
        changed = [*_run(_OUT, middle[0], first, None), *_run(_IN, middle[1], None, first)]
    head = _run(_SAME, old[:first], 0, 0)
    tail = _run(_SAME, old[len(old) - last :], len(old) - last, len(new) - last)
    return list(_folded([*head, *changed, *tail]))


def _changed(old: Sequence[str], new: Sequence[str], shift: int) -> Iterator[Line]:
    for kind, a, b, c, d in SequenceMatcher(None, old, new).get_opcodes():
        if kind == "equal":
            yield from _run(_SAME, old[a:b], a + shift, c + shift)
        else:
            yield from _run(_OUT, old[a:b], a + shift, None)
            yield from _run(_IN, new[c:d], None, c + shift)


def _run(kind: str, lines: Sequence[str], before: int | None, after: int | None) -> Iterator[Line]:
    for place, text in enumerate(lines, 1):
        yield Line(
            kind,
            text,
            None if before is None else before + place,
            None if after is None else after + place,
        )


def _folded(lines: Sequence[Line]) -> Iterator[Line]:
    """The lines without those that are far from every change."""
    near = {
        place
        for at, line in enumerate(lines)
        if line.kind != _SAME
        for place in range(at - AROUND, at + AROUND + 1)
    }
    is_open = False
    for at, line in enumerate(lines):
        if at in near:
            is_open = False
            yield line
        elif not is_open:
            is_open = True
            yield Line(_GAP, "")


def _common(one: Sequence[str], other: Sequence[str]) -> int:
    """How many lines two texts have in common from their beginning."""
    pairs = zip(one, other, strict=False)
    return next((at for at, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))
