"""Counts that all processes of one service add to: memory made before they are forked.

prometheus_client's own way for several processes is a folder of mapped files, which grows with every worker
that ever lived and kills its writer on a full disk; these few numbers need neither.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import threading
from collections.abc import Iterable

_SIZE = 8


class Tally:
    """A count for each of some names, from 0."""

    def __init__(self, names: Iterable[str]) -> None:
        self._places = {name: place for place, name in enumerate(names)}
        self._file = os.memfd_create("casemate-tally")
        os.ftruncate(self._file, _SIZE * len(self._places))
        self._counts = memoryview(mmap.mmap(self._file, _SIZE * len(self._places))).cast("Q")
        self._threads = threading.Lock()

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def add(self, name: str) -> None:
        """Counts one more; a process that is killed meanwhile holds nobody up (its lock goes with it)."""
        with self._threads:
            fcntl.lockf(self._file, fcntl.LOCK_EX)
            self._counts[self._places[name]] += 1
            fcntl.lockf(self._file, fcntl.LOCK_UN)

    def counts(self) -> dict[str, int]:
        """All names with their counts now."""
        return {name: self._counts[place] for name, place in self._places.items()}


# How often the background process has looked at all rows; made here, before it is forked.
SWEEPS = Tally(("sweeps",))
