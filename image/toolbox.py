"""Runs programs out of the unpacked packages, on the building host, without chroot or root.

They start through the image's own loader with the image's own libraries, so what they write does not
depend on the host's release.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.errors import Invalid
from core.proc import run

_LOADER = "usr/lib64/ld-linux-x86-64.so.2"
# A line of the loader's list: NAME => PATH (ADDRESS).
_LIBRARY = re.compile(r" => (\S+) \(0x")
_LIBRARIES = "usr/lib/x86_64-linux-gnu"

# Every time stamp in an image.
EPOCH = 0


@dataclass(frozen=True)
class Toolbox:
    """The trees to take programs and libraries from: the root file system and the builder's own tools."""

    root: Path
    tools: Path

    def run(self, program: str, *arguments: object, env: Mapping[str, str] | None = None) -> str:
        """Runs `program` (a path inside one of the trees) and returns its output.

        Raises core.proc.CommandFailed.
        """
        path = next(tree / program for tree in (self.root, self.tools) if (tree / program).exists())
        # kmod looks at its own name to know which program it is.
        argv = [*self._start(), "--argv0", path.name, str(path), *map(str, arguments)]
        return run(argv, env={"SOURCE_DATE_EPOCH": str(EPOCH), **(env or {})}).stdout.decode()

    @property
    def loader(self) -> Path:
        """The guest's program loader."""
        return self.root / _LOADER

    def libraries(self, program: Path) -> list[Path]:
        """The shared libraries that a program takes, the loader apart.

        Raises Invalid when one is in neither tree: the loader then looks among the host's own.
        """
        listing = run([*self._start(), "--list", str(program)]).stdout.decode()
        paths = [Path(found) for found in _LIBRARY.findall(listing)]
        paths = [path for path in paths if path.name != self.loader.name]
        for path in paths:
            if not any(path.is_relative_to(tree) for tree in (self.root, self.tools)):
                raise Invalid(
                    f"no package of the recipe brings {path.name}, which {program.name} needs"
                )
        return paths

    def python(self, *arguments: object) -> str:
        """Runs the guest's Python, which leaves no byte code of its own behind."""
        env = {
            "PYTHONHOME": str(self.root / "usr"),
            "PYTHONHASHSEED": "0",
            "PYTHONNOUSERSITE": "1",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        return self.run("usr/bin/python3.13", *arguments, env=env)

    def _start(self) -> list[str]:
        libraries = ":".join(str(tree / _LIBRARIES) for tree in (self.root, self.tools))
        return [str(self.loader), "--library-path", libraries]
