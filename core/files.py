"""Files that are whole or absent: atomic writes, opens that follow no link, locks by path."""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from core.errors import Conflict, Invalid, TooLarge

# How the name of a file ends that is not complete yet.
UNFINISHED = ".part"


def write_atomic(path: Path, content: bytes | str, mode: int = 0o600) -> None:
    """Replaces the file at `path` as one step that survives a crash: write beside it, sync, rename."""
    _write(path, content, mode, os.replace)


def write_once(path: Path, content: bytes | str, mode: int = 0o600) -> bytes:
    """Makes the file at `path` in the same way unless there is one; returns what it holds now."""
    if not path.exists():
        with contextlib.suppress(FileExistsError):
            _write(path, content, mode, os.link)
    return path.read_bytes()


def _write(
    path: Path, content: bytes | str, mode: int, into_place: Callable[[str, Path], None]
) -> None:
    data = content.encode() if isinstance(content, str) else content
    fd, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=UNFINISHED)
    try:
        with os.fdopen(fd, "wb") as file:
            os.fchmod(file.fileno(), mode)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        into_place(temporary, path)
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
    sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Makes renames and removals in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def read_capped(path: Path, limit: int) -> bytes:
    """Reads a regular file written by somebody we do not trust.

    No component of the path may be a symbolic link; what was opened must be a regular file of at most
    `limit` bytes.  Raises FileNotFoundError, Invalid (a link, FIFO or device) or TooLarge.
    """
    fd = _open_nofollow(path)
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        os.close(fd)
        raise Invalid(f"{path.name} is not a regular file")
    with os.fdopen(fd, "rb") as file:
        # As much memory as it needs, and not as it may have at most.
        data = file.read(min(status.st_size, limit) + 1)
        # The size may grow while we read: the read itself is capped, not only the look before it.
        if len(data) > status.st_size:
            data += file.read(limit + 1 - len(data))
    if len(data) > limit:
        raise TooLarge(f"{path.name} is larger than {limit} bytes")
    return data


def _open_nofollow(path: Path) -> int:
    parts = path.absolute().parts
    flags = os.O_NOFOLLOW | os.O_CLOEXEC
    directory = os.open(parts[0], os.O_RDONLY | os.O_DIRECTORY | flags)
    try:
        for part in parts[1:-1]:
            following = os.open(part, os.O_RDONLY | os.O_DIRECTORY | flags, dir_fd=directory)
            os.close(directory)
            directory = following
        # O_NONBLOCK: a FIFO without a writer must not hold us.
        return os.open(parts[-1], os.O_RDONLY | os.O_NONBLOCK | flags, dir_fd=directory)
    except OSError as error:
        if isinstance(error, FileNotFoundError):
            raise
        raise Invalid(f"{path} cannot be opened safely: {error.strerror}") from None
    finally:
        os.close(directory)


@contextlib.contextmanager
def locked(path: Path, *, timeout_s: float | None = None) -> Iterator[int]:
    """Holds the exclusive lock of the file at `path`, made when absent; yields its descriptor.

    Waits up to `timeout_s` seconds (None: for ever, 0: not at all) and raises Conflict after that.  A
    lock file that was removed while we waited is not the lock any more: FileNotFoundError when its
    directory went too, otherwise the new file is tried.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            _flock_until(fd, deadline, path)
            if _is_still(fd, path):
                yield fd
                return
        finally:
            os.close(fd)


def _flock_until(fd: int, deadline: float | None, path: Path) -> None:
    if deadline is None:
        fcntl.flock(fd, fcntl.LOCK_EX)
        return
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise Conflict(f"{path.name} is held by another process") from None
            time.sleep(0.01)


def _is_still(fd: int, path: Path) -> bool:
    try:
        on_disk = os.stat(path)
    except FileNotFoundError:
        return False
    return os.path.samestat(os.fstat(fd), on_disk)
