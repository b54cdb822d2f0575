"""What a guest or a service says, made fit for the operator's terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import click


def plain(text: str) -> str:
    """A text without control characters: a guest's words must not command the terminal."""
    return "".join(c if unicodedata.category(c)[0] != "C" else " " for c in text)


def print_table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns as wide as their widest cell."""
    lines = [head, *([plain(cell) for cell in row] for row in rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(head))]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())
