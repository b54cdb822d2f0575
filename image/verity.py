"""The root file system as one file: erofs, and behind it the dm-verity hash tree that binds its bytes."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from core.errors import Invalid
from image.toolbox import EPOCH, Toolbox

BLOCK = 4096

# One file system is one build: nobody looks it up by this.
_UUID = "c45e3a7e-0000-4000-8000-000000000001"


@dataclass(frozen=True)
class Root:
    """What the kernel command line must say of a root file system."""

    root_hash: str
    data_bytes: int


def build(tools: Toolbox, image: Path) -> Root:
    """Writes the file system of `tools.root` and its hash tree to the file `image`."""
    tools.run(
        "usr/bin/mkfs.erofs", "--quiet", "-zlz4", f"-T{EPOCH}", "-U", _UUID, "--all-root", image, tools.root
    )  # fmt: skip
    # Whole blocks; mkfs writes nothing else, but its last one may be cut short.
    size = -(-image.stat().st_size // BLOCK) * BLOCK
    os.truncate(image, size)
    report = tools.run(
        "usr/sbin/veritysetup", "format", image, image, "--no-superblock", "--hash", "sha256", "--salt", "-",
        "--data-block-size", BLOCK, "--hash-block-size", BLOCK, "--data-blocks", size // BLOCK,
        "--hash-offset", size,
    )  # fmt: skip
    match = re.search(r"^Root hash:\s+([0-9a-f]{64})$", report, re.MULTILINE)
    if not match:
        raise Invalid(f"veritysetup named no root hash: {report}")
    image.chmod(0o644)
    return Root(match[1], size)
