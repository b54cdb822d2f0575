"""Writes an initramfs: a cpio archive of the `newc` kind whose bytes depend on nothing but its entries.

Format: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator
from pathlib import PurePosixPath

_TRAILER = "TRAILER!!!"


class Archive:
    """Entries by path; folders above an entry come by themselves, all owned by root and dated 1970."""

    def __init__(self) -> None:
        self._entries: dict[str, tuple[int, bytes, tuple[int, int]]] = {}

    def add(self, path: str, content: bytes, mode: int = 0o644) -> None:
        """A regular file."""
        self._put(path, stat.S_IFREG | mode, content)

    def link(self, path: str, target: str) -> None:
        """A symbolic link."""
        self._put(path, stat.S_IFLNK | 0o777, target.encode())

    def folder(self, path: str, mode: int = 0o755) -> None:
        """A folder."""
        self._put(path, stat.S_IFDIR | mode, b"")

    def character_device(self, path: str, major: int, minor: int, mode: int = 0o600) -> None:
        """A character device."""
        self._put(path, stat.S_IFCHR | mode, b"", (major, minor))

    def to_bytes(self) -> bytes:
        """The archive, entries in order of their paths."""
        parts: list[bytes] = []
        # Sorted, so that a folder always stands before what it holds.
        for number, (path, (mode, content, device)) in enumerate(sorted(self._entries.items()), 1):
            parts += _entry(number, path, mode, content, device)
        parts += _entry(0, _TRAILER, 0, b"", (0, 0))
        archive = b"".join(parts)
        return archive + b"\0" * (-len(archive) % 512)

    def _put(self, path: str, mode: int, content: bytes, device: tuple[int, int] = (0, 0)) -> None:
        for parent in PurePosixPath(path).parents:
            if str(parent) != "." and str(parent) not in self._entries:
                self._entries[str(parent)] = (stat.S_IFDIR | 0o755, b"", (0, 0))
        self._entries[path] = (mode, content, device)


def _entry(
    number: int, path: str, mode: int, content: bytes, device: tuple[int, int]
) -> Iterator[bytes]:
    name = path.encode() + b"\0"
    links = 2 if stat.S_ISDIR(mode) else 1
    # ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    fields = (number, mode, 0, 0, links, 0, len(content), 0, 0, *device, len(name), 0)
    header = b"070701" + b"".join(b"%08x" % field for field in fields)
    yield header + name
    yield b"\0" * (-(len(header) + len(name)) % 4)
    yield content
    yield b"\0" * (-len(content) % 4)
