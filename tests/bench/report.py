"""Figures, the promises they are held to, and how both are shown: one table and one JSON file.

Source of the promises and of the rules: performance.md sections 1 and 3 of the contracts.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

# Above this load, on the two cores that the promises speak of, a figure is not compared with history.
NOISY_LOAD = 4.0
_HEADINGS = ("", "figure", "median (spread)", "peer", "peer's median (spread)", "ratio", "promise")


@dataclass(frozen=True)
class Promise:
    """A limit: `factor` times the peer's figure `plus` a constant, not to be exceeded (or undercut)."""

    factor: float = 0.0
    plus: float = 0.0
    at_least: bool = False

    def limit(self, peer: float) -> float:
        """The figure that is just allowed beside a peer's."""
        return self.factor * peer + self.plus

    def holds(self, figure: float, peer: float) -> bool:
        """Whether a figure beside a peer's is within the limit."""
        limit = self.limit(peer)
        return figure >= limit if self.at_least else figure <= limit

    def text(self, unit: str) -> str:
        """The promise in words."""
        parts = [f"{self.factor:g} x"] if self.factor else []
        if self.plus or not parts:
            parts.append(f"{self.plus:g} {unit}".strip())
        return (">= " if self.at_least else "<= ") + " + ".join(parts)


@dataclass(frozen=True)
class Line:
    """One figure: a sample per round, beside the peer's sample of the same round where there is a peer.

    A line without samples could not be measured, as its name says.
    """

    key: str
    name: str
    unit: str
    samples: Sequence[float]
    promise: Promise | None = None
    peer: str = ""
    peer_samples: Sequence[float] = ()
    note: str = ""
    load: tuple[float, float] = (0.0, 0.0)

    @property
    def is_noisy(self) -> bool:
        """Whether other work on the machine may have made the figure."""
        return max(self.load) > NOISY_LOAD

    @property
    def figure(self) -> float:
        """The median."""
        return statistics.median(self.samples)

    @property
    def peer_figure(self) -> float:
        """The peer's median; 0 without a peer."""
        return statistics.median(self.peer_samples) if self.peer_samples else 0.0

    @property
    def ratio(self) -> float | None:
        """Ours to the peer's, by medians."""
        return self.figure / self.peer_figure if self.samples and self.peer_figure else None

    @property
    def is_kept(self) -> bool | None:
        """Whether the promise holds, in all rounds and in our slower half of them; None without one."""
        if self.promise is None:
            return None
        if not self.samples:
            return False
        slow_ours, slow_peer = self._slower_half()
        return self.promise.holds(self.figure, self.peer_figure) and self.promise.holds(
            slow_ours, slow_peer
        )

    def _slower_half(self) -> tuple[float, float]:
        """The medians of the rounds in which ours did worse."""
        assert self.promise is not None
        peers = self.peer_samples or [0.0] * len(self.samples)
        if len(peers) == 1:  # a figure on record, the same for all rounds
            peers = list(peers) * len(self.samples)
        rounds = sorted(
            zip(self.samples, peers, strict=True),
            key=lambda both: both[0],
            reverse=not self.promise.at_least,
        )
        slower = rounds[: (len(rounds) + 1) // 2]
        return statistics.median(ours for ours, _ in slower), statistics.median(
            peer for _, peer in slower
        )

    def cells(self) -> list[str]:
        """The line's row of the table."""
        if not self.samples:
            return [self.key, self.name, "-", self.peer, "", "", self._verdict()]
        return [
            self.key,
            self.name,
            _shown(self.samples, self.unit),
            self.peer,
            _shown(self.peer_samples, self.unit) if self.peer_samples else "",
            "" if self.ratio is None else f"{self.ratio:.2f}",
            self._verdict(),
        ]

    def _verdict(self) -> str:
        words = []
        if self.promise is not None:
            limit = self.promise.text(self.unit)
            if self.promise.factor and self.promise.plus and self.peer_samples:
                limit += f" = {_number(self.promise.limit(self.peer_figure))}"
            words.append(f"{limit} {'kept' if self.is_kept else 'MISSED'}")
        if self.is_noisy:
            words.append("noisy")
        if self.note:
            words.append(self.note)
        return "; ".join(words)

    def record(self) -> dict[str, Any]:
        """The line as the JSON file has it."""
        return {
            "key": self.key,
            "name": self.name,
            "unit": self.unit,
            "figure": self.figure if self.samples else None,
            "samples": list(self.samples),
            "peer": self.peer,
            "peer_figure": self.peer_figure if self.peer_samples else None,
            "peer_samples": list(self.peer_samples),
            "ratio": self.ratio,
            "promise": self.promise.text(self.unit) if self.promise else None,
            "kept": self.is_kept,
            "load": list(self.load),
            "noisy": self.is_noisy,
            "note": self.note,
        }


def show(lines: Sequence[Line]) -> None:
    """Prints the table (drawn on a terminal, plain columns elsewhere) and, last, the promises kept."""
    rows = [line.cells() for line in lines]
    if sys.stdout.isatty():
        table = Table(*_HEADINGS)
        for line, row in zip(lines, rows, strict=True):
            table.add_row(*row, style="red" if line.is_kept is False else None)
        Console().print(table)
    else:
        widths = [max(map(len, column)) for column in zip(_HEADINGS, *rows, strict=True)]
        for row in [list(_HEADINGS), *rows]:
            print("  ".join(map(str.ljust, row, widths)).rstrip())
    promised = [line.is_kept for line in lines if line.promise is not None]
    print(f"promises kept {sum(map(bool, promised))}/{len(promised)}")


def write(path: Path, lines: Sequence[Line], seconds: float) -> None:
    """Writes all samples to a JSON file, with what is needed to read them later."""
    record = {
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": round(seconds, 1),
        "cores": os.cpu_count(),
        "kernel": os.uname().release,
        "python": sys.version.split()[0],
        "lines": [line.record() for line in lines],
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record, indent=1) + "\n")


def _shown(samples: Sequence[float], unit: str) -> str:
    text = f"{_number(statistics.median(samples))} {unit}".strip()
    if len(samples) > 1:
        text += f" ({_number(min(samples))}-{_number(max(samples))})"
    return text


def _number(value: float) -> str:
    digits = 0 if value >= 100 or value == int(value) else 1 if value >= 10 else 2
    return f"{value:,.{digits}f}"
