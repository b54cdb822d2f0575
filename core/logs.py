"""Log files: the last lines found from the end, following across rotation, ANSI sequences taken out.

Shared by VM logs and, later, run logs; constant memory whatever the file holds.
"""

from __future__ import annotations

import codecs
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

BLOCK = 64 * 1024
POLL_S = 0.1
_ALL = -1

# What one sequence may hold: a guest may open one and never close it.  Beyond this, and when something else
# breaks it off, only what opened it is taken out.
_LONGEST = 4096
_STRING = rf"[^\x07\x1b\x80-\x9f]{{0,{_LONGEST}}}"
_PARAMETERS = r"[0-?]{0,256}[ -/]{0,16}"
# All begin with one of these; `re` looks six times as fast for a pattern that says so first.
_FIRST = r"[\x1b\x80-\x9f]"
_SEQUENCES = (
    rf"(?:(?<=\x1b)\[|(?<=\x9b)){_PARAMETERS}[@-~]",  # CSI
    rf"(?:(?<=\x1b)\]|(?<=\x9d)){_STRING}(?:\x07|\x1b\\|\x9c)",  # OSC, ended by BEL or ST
    # DCS, SOS, PM, APC
    rf"(?:(?<=\x1b)[PX^_]|(?<=[\x90\x98\x9e\x9f])){_STRING}(?:\x1b\\|\x9c)",
)
# The beginning of one of these, or of a two-byte escape, with its rest in the next piece.
_UNFINISHED = (
    rf"(?:(?<=\x1b)\[|(?<=\x9b)){_PARAMETERS}\Z",
    rf"(?:(?<=\x1b)[\]PX^_]|(?<=[\x90\x98\x9d-\x9f])){_STRING}\x1b?\Z",
    r"(?<=\x1b)[ -/]{0,16}\Z",
)
# Two-byte escapes, and any control that is part of nothing: none is ever left.
_REST = (r"(?<=\x1b)[ -/]{0,16}[0-~]", "")
_WHOLE = re.compile(f"{_FIRST}(?:{'|'.join((*_SEQUENCES, *_REST))})")
_HELD = f"(?P<held>{'|'.join(_UNFINISHED)})"
_IN_PIECES = re.compile(f"{_FIRST}(?:{'|'.join((*_SEQUENCES, _HELD, *_REST))})")


class AnsiStripper:
    """Takes escape sequences out of a text that comes in pieces, also those cut by a piece's end."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str, *, final: bool = False) -> str:
        """The piece without sequences; what may be an unfinished one waits for the next piece."""
        text, self._held = self._held + text, ""
        return (_WHOLE if final else _IN_PIECES).sub(self._drop, text)

    def _drop(self, found: re.Match[str]) -> str:
        if found.lastgroup == "held":
            self._held = found[0]
        return ""


class Decoder:
    """Bytes of a log -> text: broken UTF-8 replaced, sequences stripped unless kept."""

    def __init__(self, keep_ansi: bool) -> None:
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._strip = None if keep_ansi else AnsiStripper()

    def feed(self, data: bytes, *, final: bool = False) -> str:
        """The next piece as text."""
        text = self._utf8.decode(data, final)
        return text if self._strip is None else self._strip.feed(text, final=final)


def start_of_last_lines(fd: int, end: int, lines: int) -> int:
    """The offset at which the last `lines` lines before `end` begin, read in blocks from the end."""
    if lines <= 0:
        return end
    position, missing = end, lines
    while position > 0:
        size = min(BLOCK, position)
        position -= size
        block = os.pread(fd, size, position)
        # The newline that ends the file ends the last line; it begins none.
        search_end = (
            len(block) - 1 if position + size == end and block.endswith(b"\n") else len(block)
        )
        found = block.count(b"\n", 0, search_end)
        if found >= missing:
            at = search_end
            for _ in range(missing):
                at = block.rindex(b"\n", 0, at)
            return position + at + 1
        missing -= found
    return 0


def tail(path: Path, lines: int, *, keep_ansi: bool = True) -> Iterator[str]:
    """The last `lines` lines of a file, in pieces; nothing when there is no file."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        end = os.fstat(fd).st_size
        yield from _pieces(fd, start_of_last_lines(fd, end, lines), end, Decoder(keep_ansi))
    finally:
        os.close(fd)


def _pieces(fd: int, position: int, end: int, decoder: Decoder) -> Iterator[str]:
    while position < end:
        data = os.pread(fd, min(BLOCK, end - position), position)
        if not data:
            break
        position += len(data)
        if text := decoder.feed(data):
            yield text
    if text := decoder.feed(b"", final=True):
        yield text


def follow(
    path: Path,
    lines: int,
    *,
    keep_ansi: bool = True,
    ended: Callable[[], bool] = lambda: False,
    heartbeat_s: float = 60,
    heartbeat: str = "",
) -> Iterator[str]:
    """The last `lines` lines of a file and then what is appended, until `ended()` says so.

    Survives truncation and replacement of the file, and waits for one that is not there yet.  After
    `heartbeat_s` seconds of silence the heartbeat text is given, so that a dead reader is noticed.
    """
    decoder = Decoder(keep_ansi)
    fd, position = -1, 0
    spoke = time.monotonic()
    try:
        fd, position = _current(path, fd, position, lines)
        lines = _ALL  # a file that comes later is read from its beginning
        yield ""  # a server sends its headers now: the log may be silent for long
        while True:
            # Asked before the look, so that what was written until the end is still given.
            over = ended()
            fd, position = _current(path, fd, position, lines)
            while fd >= 0 and (data := os.pread(fd, BLOCK, position)):
                position += len(data)
                if text := decoder.feed(data):
                    yield text
                spoke = time.monotonic()
            if over:
                yield decoder.feed(b"", final=True)
                return
            if heartbeat and time.monotonic() - spoke >= heartbeat_s:
                yield heartbeat
                spoke = time.monotonic()
            time.sleep(POLL_S)
    finally:
        if fd >= 0:
            os.close(fd)


def _current(path: Path, fd: int, position: int, lines: int) -> tuple[int, int]:
    """The descriptor and offset to read on from; -1 as long as there is no file."""
    try:
        on_disk = os.stat(path)
        if fd >= 0 and os.path.samestat(os.fstat(fd), on_disk):
            return fd, 0 if on_disk.st_size < position else position
        opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return fd, position
    if fd >= 0:
        os.close(fd)
    start = 0 if lines == _ALL else start_of_last_lines(opened, os.fstat(opened).st_size, lines)
    return opened, start
