"""What a guest or a service says, made fit for the operator's terminal."""

from __future__ import annotations

import json
import re
import sys
import time
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import click

# Colours and nothing else: no title, no clipboard, no cursor, no answer back.
_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
# The beginning of a sequence whose rest comes with the next piece.
_UNFINISHED = re.compile(r"\x1b(\[[0-9;]{0,32})?\Z")


def plain(text: str) -> str:
    """A text without control characters: a guest's words must not command the terminal."""
    return "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text)


def shown(pieces: Iterable[str], *, keep_colour: bool) -> Iterator[str]:
    """A log's pieces as a terminal may see them: lines and tabs, colours if wished, no other control."""
    held = ""
    for piece in pieces:
        text = held + piece
        unfinished = _UNFINISHED.search(text) if keep_colour else None
        held = unfinished[0] if unfinished else ""
        yield _without_control(text[: len(text) - len(held)], keep_colour)


def _without_control(text: str, keep_colour: bool) -> str:
    words = _COLOUR.split(text)
    colours = [*_COLOUR.findall(text), ""] if keep_colour else [""] * len(words)
    return "".join(_lines(word) + colour for word, colour in zip(words, colours, strict=True))


def _lines(text: str) -> str:
    kept = text.replace("\r\n", "\n").replace("\r", "\n")
    return "".join(c if c in "\n\t" or unicodedata.category(c)[0] != "C" else " " for c in kept)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell."""
    lines = [head, *([plain(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def print_json(value: Any) -> None:
    """One JSON document; its texts are escaped, so they command nothing either."""
    click.echo(json.dumps(value, indent=2))


def say(text: str) -> None:
    """A remark on standard error, beside the answer."""
    click.echo(plain(text), err=True)


class Steps:
    """Shows a long work on standard error: each step with the seconds since the start.

    On a terminal the reports of one step share a line that moves; elsewhere each new report is a line.
    """

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._last = ""
        self._report = ""

    def show(self, step: str, fraction: float | None = None, text: str = "") -> None:
        """Prints one report of progress."""
        share = "" if fraction is None else f" {fraction:4.0%}"
        line = plain(f"{time.monotonic() - self._start:6.1f} s  {step}{share}  {text}".rstrip())
        if not self._is_terminal:
            said, self._report = self._report, f"{step}{share}{text}"
            if said != self._report:
                click.echo(line, err=True)
            return
        if self._last not in ("", step):
            click.echo(err=True)
        click.echo(f"\r\x1b[K{line}", err=True, nl=fraction == 1.0)
        self._last = "" if fraction == 1.0 else step

    def end(self) -> None:
        """Leaves the last step's line as it is."""
        if self._last and self._is_terminal:
            click.echo(err=True)
        self._last = ""
