"""Image folders: good ones of ours and of dstack's, and each way to be a bad one."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import pytest

from core.config import ImageConfig
from core.errors import Invalid, NotFound, Unavailable
from image import manifest, registry

OURS: Mapping[str, object] = {
    "kernel": "bzImage",
    "initrd": "initramfs.cpio.gz",
    "rootfs": "rootfs.img.verity",
    "bios": "ovmf.fd",
    "cmdline": f"console=ttyS0 dstack.rootfs_hash={'ab' * 32} dstack.rootfs_size=4096",
    "version": "0.5.11",
    "is_dev": False,
    "shared_ro": True,
}


def make(path: Path, name: str, metadata: Mapping[str, object] = OURS) -> Path:
    """An image folder with every file that ours name."""
    folder = path / name
    folder.mkdir()
    for file in ("bzImage", "initramfs.cpio.gz", "rootfs.img.verity", "ovmf.fd"):
        (folder / file).write_bytes(file.encode())
    manifest.write(folder, metadata, ["bzImage", "initramfs.cpio.gz", "ovmf.fd"])
    return folder


def test_an_image_of_ours_loads(tmp_path: Path) -> None:
    folder = make(tmp_path, "casemate-0.5.11")

    image = registry.load(tmp_path, "casemate-0.5.11")

    assert image.kernel == folder / "bzImage"
    assert image.initrd == folder / "initramfs.cpio.gz"
    assert image.rootfs == folder / "rootfs.img.verity"
    assert image.bios == folder / "ovmf.fd"
    assert (image.bios_sev, image.hda, image.ovmf_variant) == (None, None, None)
    assert image.rootfs_hash == "ab" * 32
    assert image.digest == manifest.digest(folder)
    assert image.shared_ro
    assert not image.is_dev
    assert image.metadata == (folder / "metadata.json").read_text()


def test_a_stock_dstack_image_loads(tmp_path: Path) -> None:
    stock = {
        "bios": "ovmf.fd",
        "kernel": "bzImage",
        "cmdline": "console=ttyS0",
        "initrd": "initramfs.cpio.gz",
        "rootfs": "rootfs.img.verity",
        "rootfs_hash": "cd" * 32,
        "git_revision": "abc",
        "is_dev": True,
        "bios-sev": "ovmf.fd",
        "ovmf_variant": "pre202505",
    }
    folder = make(tmp_path, "dstack-dev-0.5.4", stock)

    image = registry.load(tmp_path, "dstack-dev-0.5.4")

    assert image.version == "0.5.4"
    assert image.is_dev
    assert image.bios_sev == folder / "ovmf.fd"
    assert image.ovmf_variant == "pre202505"
    assert image.rootfs_hash == "cd" * 32


@pytest.mark.parametrize(
    "change",
    [
        {"kernel": None},
        {"initrd": ""},
        {"kernel": 7},
        {"kernel": "missing"},
        {"kernel": "../casemate-0.5.11.outside"},
        {"kernel": "/etc/hostname"},
        {"kernel": "."},
        {"kernel": "a\0b"},
        {"rootfs": "ovmf.fd"},
        {"bios": "missing"},
        {"cmdline": ["console"]},
        {"is_dev": "no"},
        {"shared_ro": 1},
        {"version": "0.4.9"},
        {"version": "0.5"},
        {"version": "latest"},
        {"version": 5},
    ],
)
def test_an_image_that_breaks_a_rule_is_refused(tmp_path: Path, change: dict[str, object]) -> None:
    (tmp_path / "casemate-0.5.11.outside").write_bytes(b"")
    make(tmp_path, "casemate-0.5.11", {**OURS, **change})

    with pytest.raises(Invalid, match=r"image casemate-0.5.11: "):
        registry.load(tmp_path, "casemate-0.5.11")


def test_a_symbolic_link_out_of_the_folder_is_refused(tmp_path: Path) -> None:
    folder = make(tmp_path, "casemate-0.5.11")
    (folder / "bzImage").unlink()
    (folder / "bzImage").symlink_to("/etc/hostname")

    with pytest.raises(Invalid, match="outside"):
        registry.load(tmp_path, "casemate-0.5.11")


def test_a_symbolic_link_inside_the_folder_is_followed(tmp_path: Path) -> None:
    folder = make(tmp_path, "casemate-0.5.11")
    (folder / "bzImage").rename(folder / "vmlinuz")
    (folder / "bzImage").symlink_to("vmlinuz")

    assert registry.load(tmp_path, "casemate-0.5.11").kernel == folder / "vmlinuz"


def test_a_fifo_is_not_taken_for_a_kernel(tmp_path: Path) -> None:
    folder = make(tmp_path, "casemate-0.5.11")
    (folder / "bzImage").unlink()
    os.mkfifo(folder / "bzImage")

    with pytest.raises(Invalid, match="not a regular file"):
        registry.load(tmp_path, "casemate-0.5.11")


def test_a_version_that_nobody_names_is_refused(tmp_path: Path) -> None:
    make(tmp_path, "casemate", {**OURS, "version": ""})

    with pytest.raises(Invalid, match="version"):
        registry.load(tmp_path, "casemate")


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a/b", "/etc", "a..b", ".hidden", "x" * 65, "a b", "ä", "a\n"]
)
def test_a_name_that_breaks_the_rule_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid):
        registry.load(tmp_path, name)
    with pytest.raises(Invalid):
        registry.remove(tmp_path, name)


def test_an_image_that_is_not_there_is_not_found(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="nothing-0.5.4"):
        registry.load(tmp_path, "nothing-0.5.4")
    with pytest.raises(NotFound, match="nothing-0.5.4"):
        registry.remove(tmp_path, "nothing-0.5.4")


def test_a_listing_is_sorted_and_leaves_broken_images_out(tmp_path: Path) -> None:
    for name in ("casemate-0.5.11", "broken-0.5.4", "acme-0.5.4"):
        make(tmp_path, name)
    (tmp_path / "broken-0.5.4/bzImage").unlink()
    (tmp_path / ".installing-1").mkdir()
    (tmp_path / "a-file").write_text("")

    assert [image.name for image in registry.list_images(tmp_path)] == [
        "acme-0.5.4",
        "casemate-0.5.11",
    ]
    assert list(registry.broken_images(tmp_path)) == ["broken-0.5.4"]
    assert "bzImage" in registry.broken_images(tmp_path)["broken-0.5.4"]


def test_a_folder_that_is_not_there_has_no_images(tmp_path: Path) -> None:
    assert registry.list_images(tmp_path / "none") == []


def test_versions_compare_as_numbers(tmp_path: Path) -> None:
    make(tmp_path, "a-0.5.9", {**OURS, "version": "0.5.9"})
    make(tmp_path, "b-0.5.11")

    older, newer = registry.list_images(tmp_path)

    assert older.version_key < newer.version_key


def test_a_removed_image_leaves_nothing(tmp_path: Path) -> None:
    make(tmp_path, "casemate-0.5.11")

    registry.remove(tmp_path, "casemate-0.5.11")

    assert list(tmp_path.iterdir()) == []


def test_removing_a_linked_image_leaves_its_target(tmp_path: Path) -> None:
    make(tmp_path, "casemate-0.5.11")
    images = tmp_path / "images"
    images.mkdir()
    (images / "mine").symlink_to(tmp_path / "casemate-0.5.11")

    registry.remove(images, "mine")

    assert list(images.iterdir()) == []
    assert registry.load(tmp_path, "casemate-0.5.11").name == "casemate-0.5.11"


def test_changed_files_of_a_loaded_image_are_named(tmp_path: Path) -> None:
    folder = make(tmp_path, "casemate-0.5.11")
    image = registry.load(tmp_path, "casemate-0.5.11")
    (folder / "initramfs.cpio.gz").write_bytes(b"other")
    (folder / "rootfs.img.verity").write_bytes(b"dm-verity's to check")

    assert registry.changed_files(image) == ["initramfs.cpio.gz"]


@pytest.mark.parametrize(
    ("default", "dev", "name"),
    [
        ("", False, "b-0.5.11"),
        ("", True, "c-0.6.0"),
        ("a-0.5.9", False, "a-0.5.9"),
        ("a-0.5.9", True, "c-0.6.0"),
    ],
)
def test_whoever_names_no_image_gets_the_configured_or_the_newest(
    tmp_path: Path, default: str, dev: bool, name: str
) -> None:
    make(tmp_path, "a-0.5.9", {**OURS, "version": "0.5.9"})
    make(tmp_path, "b-0.5.11")
    make(tmp_path, "c-0.6.0", {**OURS, "version": "0.6.0", "is_dev": True})

    assert registry.chosen(ImageConfig(tmp_path, default=default), dev=dev) == name


def test_a_dev_image_is_chosen_where_there_is_no_other_and_none_where_there_is_none(
    tmp_path: Path,
) -> None:
    settings = ImageConfig(tmp_path)
    with pytest.raises(Unavailable, match="casemate image build"):
        registry.chosen(settings)
    make(tmp_path, "c-0.6.0", {**OURS, "is_dev": True})

    assert registry.chosen(settings) == "c-0.6.0"
