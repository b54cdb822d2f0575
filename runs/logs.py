"""Output of jobs: one append-only file per submission, read by byte offsets while it is written and long after.

A record is a header (magic, microseconds since 1970, length), the bytes as the terminal gave them, and the length
again, so that a file can be read from both ends.  Beside it lies an index with the time, the place and the count of
output bytes every so often: neither a page nor a start costs a read of what is before.
"""

from __future__ import annotations

import contextlib
import errno
import os
import struct
from bisect import bisect_left, bisect_right
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from core.errors import Invalid
from runs.moments import now_us

_HEADER = struct.Struct(">4sQI")
_FOOTER = struct.Struct(">I")
_MARK = struct.Struct(">QQQ")  # time, offset in the file, bytes of output before it
_MAGIC = b"\xc5log"
# A record's bytes, so that one page stays small.
RECORD_MAX = 32 * 1024
# A page ends behind so many bytes even when more entries were asked for.
PAGE_MAX = 1024 * 1024
INDEX_EVERY = 256 * 1024
# The folder of all output, below the data directory.
LOGS = "run-logs"
# What a file may have bytes at all.
_MOST = 2**63 - 1
_OVERHEAD = _HEADER.size + _FOOTER.size


@dataclass(frozen=True)
class Entry:
    """One chunk of output."""

    moment_us: int
    data: bytes
    offset: int
    end: int


@dataclass(frozen=True)
class Page:
    """Entries in the order asked for; `token` continues behind them, None when there is no more now."""

    entries: list[Entry]
    token: str | None


@dataclass
class Log:
    """The log of one submission; one process writes it."""

    path: Path
    _output: BinaryIO | None = field(default=None, repr=False)
    _length: int = 0
    _marked: int = 0

    # Writing ---------------------------------------------------------------------------------

    def append(self, data: bytes, moment_us: int | None = None) -> None:
        """Adds bytes of output; they can be read when this returns, and none of them is there when it fails."""
        output = self._open()
        begin, before = output.tell(), (self._length, self._marked)
        try:
            for start in range(0, len(data), RECORD_MAX):
                moment = now_us() if moment_us is None else moment_us
                self._add(output, data[start : start + RECORD_MAX], moment)
        except OSError:
            # The giver will try again: half a record would hide all that follows it.
            self._cut(output, begin)
            self._length, self._marked = before
            raise

    def _add(self, output: BinaryIO, piece: bytes, moment_us: int) -> None:
        offset = output.tell()
        record = _HEADER.pack(_MAGIC, moment_us, len(piece)) + piece + _FOOTER.pack(len(piece))
        if output.write(record) < len(record):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        if offset - self._marked >= INDEX_EVERY:
            self._mark(moment_us, offset)
        self._length += len(piece)

    def _cut(self, output: BinaryIO, end: int) -> None:
        output.truncate(end)
        output.seek(end)
        kept = [mark for mark in self._marks() if mark[1] < end]
        with contextlib.suppress(FileNotFoundError):
            os.truncate(self._index, len(kept) * _MARK.size)

    def length(self) -> int:
        """How many bytes of output there are."""
        self._open()
        return self._length

    def length_since(self, moment_us: int) -> int:
        """How many bytes of output came since a time; counts up to a step of the index too many."""
        marks = self._marks()
        place = bisect_left(marks, moment_us, key=lambda mark: mark[0])
        return self.length() - (marks[place - 1][2] if place else 0)

    def close(self) -> None:
        """Closes the file; it may be opened again."""
        if self._output is not None:
            self._output.close()
            self._output = None

    def _open(self) -> BinaryIO:
        if self._output is None:
            self.path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
            self._output = os.fdopen(os.open(self.path, flags, 0o600), "r+b", buffering=0)
            self._recover(self._output)
        return self._output

    def _recover(self, output: BinaryIO) -> None:
        # What a crash left half written at the end is cut off: nobody was told of it.
        size = os.fstat(output.fileno()).st_size
        marks = [mark for mark in self._marks() if mark[1] <= size]
        self._marked, self._length = marks[-1][1:] if marks else (0, 0)
        end = self._marked
        for entry in _forward(output, self._marked, size):
            self._length += len(entry.data)
            end = entry.end
        if end < size:
            output.truncate(end)
        output.seek(end)

    def _mark(self, moment_us: int, offset: int) -> None:
        with open(self._index, "ab") as index:
            index.write(_MARK.pack(moment_us, offset, self._length))
        self._marked = offset

    # Reading ---------------------------------------------------------------------------------

    def page(
        self,
        limit: int,
        *,
        token: str | None = None,
        after_us: int | None = None,
        before_us: int | None = None,
        descending: bool = False,
    ) -> Page:
        """At most `limit` entries between two times, both exclusive; Invalid for a token of no entry's edge."""
        try:
            with open(self.path, "rb") as file:
                size = os.fstat(file.fileno()).st_size
                start = self._start(size, token, after_us, descending)
                _check_edge(file, start, size)
                return _page(file, size, start, limit, after_us, before_us, descending)
        except FileNotFoundError:
            return empty_page(token, 0)

    def _start(self, size: int, token: str | None, after_us: int | None, descending: bool) -> int:
        if token is not None:
            return _offset(token, size)
        if descending:
            return size
        if after_us is None:
            return 0
        marks = self._marks()
        place = bisect_right(marks, after_us, key=lambda mark: mark[0])
        return marks[place - 1][1] if place and marks[place - 1][1] <= size else 0

    def _marks(self) -> list[tuple[int, int, int]]:
        try:
            raw = self._index.read_bytes()
        except FileNotFoundError:
            return []
        return list(_MARK.iter_unpack(raw[: len(raw) // _MARK.size * _MARK.size]))

    @property
    def _index(self) -> Path:
        return self.path.with_suffix(".index")

    def remove(self) -> None:
        """Deletes the log."""
        self.close()
        for path in (self.path, self._index):
            with contextlib.suppress(FileNotFoundError):
                path.unlink()


def log_of(data_dir: Path, submission_id: str, *, diagnose: bool = False) -> Log:
    """The log of a submission, or the runner's own one of it."""
    kind = "diagnosis" if diagnose else "log"
    return Log(data_dir / LOGS / submission_id[:2] / f"{submission_id}.{kind}")


def empty_page(token: str | None, size: int = _MOST) -> Page:
    """The page of what said nothing; a token that no log of at most so many bytes can have given is refused."""
    if token is not None:
        _offset(token, size)
    return Page([], None)


def _offset(token: str, size: int) -> int:
    if not (token.isascii() and token.isdigit() and len(token) < 20) or int(token) > size:
        raise Invalid.field("next_token", "is none that this log gave")
    return int(token)


def _check_edge(file: BinaryIO, offset: int, size: int) -> None:
    if offset in (0, size):
        return
    file.seek(offset)
    if file.read(len(_MAGIC)) != _MAGIC:
        raise Invalid.field("next_token", "is none that this log gave")


def _page(
    file: BinaryIO,
    size: int,
    start: int,
    limit: int,
    after_us: int | None,
    before_us: int | None,
    descending: bool,
) -> Page:
    entries: list[Entry] = []
    place, held = start, 0
    for entry in _backward(file, start) if descending else _forward(file, start, size):
        edge = entry.offset if descending else entry.end
        is_late = before_us is not None and entry.moment_us >= before_us
        is_early = after_us is not None and entry.moment_us <= after_us
        if is_early if descending else is_late:
            return Page(entries, None)
        if is_early or is_late:
            place = edge
            continue
        if len(entries) >= limit or held >= PAGE_MAX:
            return Page(entries, str(place))
        entries.append(entry)
        place, held = edge, held + len(entry.data)
    return Page(entries, None)


def _forward(file: BinaryIO, start: int, size: int) -> Iterator[Entry]:
    """The whole records from a place on; ends before one that is not there completely."""
    offset = start
    while offset + _OVERHEAD <= size:
        file.seek(offset)
        magic, moment, length = _HEADER.unpack(file.read(_HEADER.size))
        end = offset + _OVERHEAD + length
        if magic != _MAGIC or length > RECORD_MAX or end > size:
            return
        data = file.read(length)
        yield Entry(moment, data, offset, end)
        offset = end


def _backward(file: BinaryIO, start: int) -> Iterator[Entry]:
    """The records before a place, the last one first."""
    end = start
    while end >= _OVERHEAD:
        file.seek(end - _FOOTER.size)
        (length,) = _FOOTER.unpack(file.read(_FOOTER.size))
        offset = end - _OVERHEAD - length
        if offset < 0 or length > RECORD_MAX:
            return
        file.seek(offset)
        magic, moment, again = _HEADER.unpack(file.read(_HEADER.size))
        if magic != _MAGIC or again != length:
            return
        yield Entry(moment, file.read(length), offset, end)
        end = offset
