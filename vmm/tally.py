"""Counts that all processes of one service add to: memory made before they are forked.

prometheus_client's own way for several processes is a folder of mapped files, which grows with every worker
that ever lived and kills its writer on a full disk; these few numbers need neither.
"""

from __future__ import annotations

import contextlib
import fcntl
import mmap
import os
import threading
from collections.abc import Iterable

_SIZE = 8
# More than one service has at once; should it have more, those that come last share a row and may lose a count.
_ROWS = 256


class Tally:
    """A count for each of some names, from 0.

    Each process counts in a row of its own, so that none waits for another.  The row of one that has ended is the
    next one's, who goes on from what stands there.
    """

    def __init__(self, names: Iterable[str]) -> None:
        self._places = {name: place for place, name in enumerate(names)}
        size = _SIZE * len(self._places) * _ROWS
        self._file = os.memfd_create("casemate-tally")
        os.ftruncate(self._file, size)
        self._counts = memoryview(mmap.mmap(self._file, size)).cast("Q")
        self._threads = threading.Lock()
        self._owner, self._row = 0, 0

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def add(self, name: str) -> None:
        """Counts one more."""
        with self._threads:
            if self._owner != os.getpid():  # forked since
                self._owner, self._row = os.getpid(), self._free_row()
            self._counts[self._row * len(self._places) + self._places[name]] += 1

    def counts(self) -> dict[str, int]:
        """All names with their counts now."""
        return {
            name: sum(self._counts[place :: len(self._places)])
            for name, place in self._places.items()
        }

    def _free_row(self) -> int:
        """A row whose lock no living process holds, and now this one, until the kernel takes it back."""
        for row in range(_ROWS - 1):
            with contextlib.suppress(BlockingIOError, PermissionError):  # fcntl(2) names both
                fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, row)
                return row
        return _ROWS - 1


# How often the background process has looked at all rows; made here, before it is forked.
SWEEPS = Tally(("sweeps",))
