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

# CSI, OSC (ended by BEL or ST), DCS/SOS/PM/APC strings (ended by ST), two-byte escapes, C1 controls.
_ANSI = re.compile(
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b\]|\x9d)[^\x07\x1b\x9c]*(?:\x07|\x1b\\|\x9c)"
    r"|(?:\x1b[PX^_]|[\x90\x98\x9e\x9f])[^\x1b\x9c]*(?:\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
    r"|[\x80-\x9a\x9c-\x9f]"
)
# What may be the beginning of a sequence whose rest is in the next block.
_UNFINISHED = re.compile(
    r"(?:\x1b|(?:\x1b\[|\x9b)[0-?]*[ -/]*|(?:\x1b[\]PX^_]|[\x90\x98\x9d\x9e\x9f])[^\x07\x1b\x9c]*\x1b?"
    r"|\x1b[ -/]+)\Z"
)
# A guest may open a string and never close it: beyond this it is not held back.
_HELD_MOST = 4096


class AnsiStripper:
    """Takes escape sequences out of a text that comes in pieces, also those cut by a piece's end."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str, *, final: bool = False) -> str:
        """The piece without sequences; what may be an unfinished one waits for the next piece."""
        text = _ANSI.sub("", self._held + text)
        self._held = ""
        unfinished = _UNFINISHED.search(text)
        if unfinished:
            if final or len(unfinished[0]) > _HELD_MOST:
                return text[: unfinished.start()] + unfinished[0].lstrip("\x1b\x9b")
            self._held = unfinished[0]
            text = text[: unfinished.start()]
        return text


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
    `heartbeat_s` seconds of silence the heartbeat text is given, so that a dead reader is noticed; an
    empty text is given at every look, for the caller to find out.
    """
    decoder = Decoder(keep_ansi)
    fd, position = -1, 0
    spoke = time.monotonic()
    try:
        while True:
            # Asked before the look, so that what was written until the end is still given.
            over = ended()
            fd, position, moved = _current(path, fd, position, lines)
            if moved:
                lines = 1 << 62  # a new file is read from its beginning
            while fd >= 0 and (data := os.pread(fd, BLOCK, position)):
                position += len(data)
                if text := decoder.feed(data):
                    yield text
                spoke = time.monotonic()
            if over:
                return
            if heartbeat and time.monotonic() - spoke >= heartbeat_s:
                yield heartbeat
                spoke = time.monotonic()
            time.sleep(POLL_S)
    finally:
        if fd >= 0:
            os.close(fd)


def _current(path: Path, fd: int, position: int, lines: int) -> tuple[int, int, bool]:
    """The descriptor and offset to read on from, and whether a file was opened just now."""
    try:
        on_disk = os.stat(path)
    except FileNotFoundError:
        return fd, position, False
    if fd >= 0 and os.path.samestat(os.fstat(fd), on_disk):
        return fd, 0 if on_disk.st_size < position else position, False
    if fd >= 0:
        os.close(fd)
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    return opened, start_of_last_lines(opened, os.fstat(opened).st_size, lines), True
