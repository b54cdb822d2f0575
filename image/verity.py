"""The root file system as one file: erofs, and behind it the dm-verity hash tree that binds its bytes.

The tree is dm-verity's version 1 with SHA-256, blocks of 4096 bytes, no salt and no superblock: what
`veritysetup format --no-superblock --salt - --hash-offset SIZE` appends.
Source: the kernel's Documentation/admin-guide/device-mapper/verity.rst.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import BinaryIO

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
        "usr/bin/mkfs.erofs", "--quiet", "-zlz4", "-C65536", f"-T{EPOCH}", "-U", _UUID, "--all-root", image, tools.root
    )  # fmt: skip
    root = seal(image)
    image.chmod(0o644)
    return root


def seal(image: Path) -> Root:
    """Fills the file up to whole blocks and appends its hash tree."""
    size = -(-image.stat().st_size // BLOCK) * BLOCK
    os.truncate(image, size)
    with image.open("r+b") as file:
        tree = _hash_tree(_digests(file, size))
        file.seek(size)
        file.write(tree)
    return Root(_root_hash(tree), size)


def is_intact(image: Path, root: Root) -> bool:
    """Whether every byte of the file, data and tree, is what the root hash stands for."""
    with image.open("rb") as file:
        tree = _hash_tree(_digests(file, root.data_bytes))
        file.seek(root.data_bytes)
        return file.read() == tree and _root_hash(tree) == root.root_hash


def _digests(file: BinaryIO, size: int) -> bytes:
    """The digests of the first `size` bytes, block by block."""
    file.seek(0)
    return b"".join(sha256(file.read(BLOCK)).digest() for _ in range(size // BLOCK))


def _hash_tree(digests: bytes) -> bytes:
    """The tree over the digests of the data blocks, its top first."""
    levels: list[bytes] = []
    while not levels or len(levels[0]) > BLOCK:
        level = digests + b"\0" * (-len(digests) % BLOCK)
        levels.insert(0, level)
        digests = b"".join(
            sha256(level[at : at + BLOCK]).digest() for at in range(0, len(level), BLOCK)
        )
    return b"".join(levels)


def _root_hash(tree: bytes) -> str:
    return sha256(tree[:BLOCK]).hexdigest()
