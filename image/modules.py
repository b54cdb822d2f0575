"""The modules of a kernel package: which file each is, what it needs first, and its uncompressed bytes."""

from __future__ import annotations

import lzma
import re
from collections.abc import Iterable, Iterator
from pathlib import Path

_DEPENDS = re.compile(rb"\0depends=([^\0]*)\0")


class Modules:
    """The modules below `usr/lib/modules/VERSION/kernel` of an unpacked kernel package."""

    def __init__(self, kernel_tree: Path) -> None:
        (self.directory,) = (kernel_tree / "usr/lib/modules").iterdir()
        self._paths = {
            # The kernel takes - and _ for the same.
            path.name.removesuffix(".ko.xz").replace("-", "_"): path
            for path in sorted((self.directory / "kernel").rglob("*.ko.xz"))
        }
        self._content: dict[str, bytes] = {}

    @property
    def version(self) -> str:
        """The kernel's version as `uname -r` says it."""
        return self.directory.name

    def path(self, name: str) -> str:
        """Where a module stands below the version's folder, without the compression's suffix."""
        return str(self._paths[name].relative_to(self.directory)).removesuffix(".xz")

    def content(self, name: str) -> bytes:
        """A module's uncompressed file: guests load it without spending time on that."""
        if name not in self._content:
            self._content[name] = lzma.decompress(self._paths[name].read_bytes())
        return self._content[name]

    def below(self, prefixes: Iterable[str]) -> list[str]:
        """The modules whose path below kernel/ starts with one of the prefixes."""
        wanted = tuple(f"kernel/{prefix}" for prefix in prefixes)
        return [name for name in self._paths if self.path(name).startswith(wanted)]

    def in_load_order(self, names: Iterable[str]) -> list[str]:
        """The modules and all that they need, each after what it needs."""
        ordered: dict[str, None] = {}
        for name in names:
            self._visit(name, ordered)
        return list(ordered)

    def _visit(self, name: str, ordered: dict[str, None]) -> None:
        if name in ordered:
            return
        for needed in self._needs(name):
            self._visit(needed, ordered)
        ordered[name] = None

    def _needs(self, name: str) -> Iterator[str]:
        match = _DEPENDS.search(self.content(name))
        for needed in match[1].decode().split(",") if match else ():
            if needed:
                yield needed.replace("-", "_")
