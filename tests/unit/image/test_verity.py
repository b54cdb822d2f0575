"""The hash tree behind a root file system, against what veritysetup made of the same bytes."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import pytest

from image import verity
from image.verity import BLOCK

# `veritysetup format FILE FILE --no-superblock --salt - --data-blocks N --hash-offset N*4096` of cryptsetup
# 2.6.1: the root hash, and the SHA-256 of the whole file after it.
VECTORS = {
    5: (
        "9fb3699299a7379329e3a250ed99ec4318c18e0d88a3550075fd73ee9bb23242",
        "6bf94633408b968d27452ed33dfc8acae1557730ff210086b25faaa4a936ad17",
    ),
    300: (
        "edc24cd4615abcd726845d41c1e48a99aeb5837da57ffd6c74dce3919d1d6447",
        "2c979c88026595a698b2e79ee8b52a36da44602553ac4e642e4281927e13f1e2",
    ),
}


def data(blocks: int) -> bytes:
    """Blocks that differ."""
    return b"".join(bytes([number % 251]) * BLOCK for number in range(blocks))


@pytest.fixture
def sealed(tmp_path: Path) -> tuple[Path, verity.Root]:
    """A sealed file of two levels."""
    image = tmp_path / "rootfs"
    image.write_bytes(data(300))
    return image, verity.seal(image)


@pytest.mark.parametrize("blocks", VECTORS)
def test_the_tree_is_the_one_that_veritysetup_makes(tmp_path: Path, blocks: int) -> None:
    image = tmp_path / "rootfs"
    image.write_bytes(data(blocks))

    root = verity.seal(image)

    assert (root.root_hash, sha256(image.read_bytes()).hexdigest()) == VECTORS[blocks]
    assert root.data_bytes == blocks * BLOCK


def test_a_block_cut_short_is_filled_up(tmp_path: Path) -> None:
    image = tmp_path / "rootfs"
    image.write_bytes(data(2) + b"end")

    assert verity.seal(image).data_bytes == 3 * BLOCK


def test_an_untouched_file_is_intact(sealed: tuple[Path, verity.Root]) -> None:
    assert verity.is_intact(*sealed)


@pytest.mark.parametrize("offset", [0, 150 * BLOCK, 300 * BLOCK, 303 * BLOCK + 100])
def test_a_changed_byte_of_data_or_tree_is_seen(
    sealed: tuple[Path, verity.Root], offset: int
) -> None:
    image, root = sealed
    content = bytearray(image.read_bytes())
    content[offset] ^= 1
    image.write_bytes(content)

    assert not verity.is_intact(image, root)


@pytest.mark.parametrize("cut", [1, BLOCK, 5 * BLOCK])
def test_a_file_of_another_length_is_not_intact(sealed: tuple[Path, verity.Root], cut: int) -> None:
    image, root = sealed
    content = image.read_bytes()

    image.write_bytes(content[:-cut])
    assert not verity.is_intact(image, root)

    image.write_bytes(content + bytes(cut))
    assert not verity.is_intact(image, root)
