"""Kernel modules: found by name and path, each after what it needs."""

from __future__ import annotations

import lzma
from pathlib import Path

import pytest

from image.modules import Modules

TREE = {
    "drivers/md/dm-verity": "dm-mod,dm-bufio",
    "drivers/md/dm-mod": "",
    "drivers/md/dm-bufio": "dm-mod",
    "fs/erofs/erofs": "libcrc32c",
    "lib/libcrc32c": "",
}


@pytest.fixture
def modules(tmp_path: Path) -> Modules:
    """A kernel package of five modules."""
    for path, needs in TREE.items():
        file = tmp_path / "usr/lib/modules/6.12-cloud/kernel" / f"{path}.ko.xz"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(lzma.compress(b"\x7fELF\0license=GPL\0depends=" + needs.encode() + b"\0"))
    return Modules(tmp_path)


def test_the_version_is_the_folder_of_the_modules(modules: Modules) -> None:
    assert modules.version == "6.12-cloud"


def test_what_a_module_needs_is_loaded_before_it(modules: Modules) -> None:
    assert modules.in_load_order(["dm_verity", "erofs"]) == [
        "dm_mod",
        "dm_bufio",
        "dm_verity",
        "libcrc32c",
        "erofs",
    ]


def test_modules_are_found_by_the_start_of_their_path(modules: Modules) -> None:
    assert modules.below(["drivers/md/dm-", "lib/"]) == [
        "dm_bufio",
        "dm_mod",
        "dm_verity",
        "libcrc32c",
    ]


def test_a_module_is_kept_uncompressed(modules: Modules) -> None:
    assert modules.path("dm_verity") == "kernel/drivers/md/dm-verity.ko"
    assert modules.content("dm_verity").startswith(b"\x7fELF")


def test_a_module_that_the_kernel_lacks_is_an_error(modules: Modules) -> None:
    with pytest.raises(KeyError, match="dm_magic"):
        modules.in_load_order(["dm_magic"])
