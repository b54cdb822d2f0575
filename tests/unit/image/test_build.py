"""The content key, and installing a finished image where a host looks for it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from image import build, manifest, recipe, registry, tree
from image.build import Variant, content_key, install


@pytest.fixture
def sources(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkout."""
    for package in ("image", *recipe.GUEST_CODE):
        (tmp_path / package).mkdir()
        (tmp_path / package / "module.py").write_text(package)
    (tmp_path / "vmm").mkdir()
    monkeypatch.setattr(tree, "SOURCES", tmp_path)
    return tmp_path


@pytest.fixture
def cached(tmp_path: Path) -> Path:
    """A finished image in a cache."""
    folder = tmp_path / "cache/images" / ("ab" * 32)
    folder.mkdir(parents=True)
    for name in (build.KERNEL, build.INITRD, build.ROOTFS):
        (folder / name).write_bytes(name.encode())
    metadata = {
        "name": "casemate-0.5.11",
        "version": "0.5.11",
        "kernel": build.KERNEL,
        "initrd": build.INITRD,
        "rootfs": build.ROOTFS,
    }
    manifest.write(folder, metadata, [build.KERNEL, build.INITRD])
    return folder


@pytest.mark.parametrize("package", ["image", "core", "guest", "attest", "attest_sim"])
def test_the_content_key_follows_every_source(sources: Path, package: str) -> None:
    before = content_key(Variant.PRODUCTION)

    (sources / package / "module.py").write_text("changed")

    assert content_key(Variant.PRODUCTION) != before


def test_the_content_key_follows_names_and_modes(sources: Path) -> None:
    keys = {content_key(Variant.PRODUCTION)}

    (sources / "image/module.py").chmod(0o755)
    keys.add(content_key(Variant.PRODUCTION))
    (sources / "image/module.py").rename(sources / "image/other.py")
    keys.add(content_key(Variant.PRODUCTION))

    assert len(keys) == 3


def test_the_content_key_ignores_byte_code_and_other_packages(sources: Path) -> None:
    before = content_key(Variant.PRODUCTION)

    (sources / "guest/__pycache__").mkdir()
    (sources / "guest/__pycache__/module.pyc").write_bytes(b"")
    (sources / "vmm/module.py").write_text("changed")

    assert content_key(Variant.PRODUCTION) == before


def test_the_variants_have_keys_and_names_of_their_own(sources: Path) -> None:
    assert content_key(Variant.PRODUCTION) != content_key(Variant.DEV)
    assert Variant.DEV.image_name == f"casemate-dev-{recipe.VERSION}"


def test_the_version_is_one_that_the_registry_and_its_clients_take() -> None:
    assert tuple(map(int, recipe.VERSION.split("."))) >= (0, 5, 4)


def test_an_installed_image_loads(cached: Path, tmp_path: Path) -> None:
    installed = install(cached, tmp_path / "images")

    assert installed == tmp_path / "images/casemate-0.5.11"
    assert registry.load(tmp_path / "images", "casemate-0.5.11").digest == manifest.digest(cached)
    assert not any(path.is_symlink() for path in installed.iterdir())
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["casemate-0.5.11"]


def test_installing_twice_changes_nothing(cached: Path, tmp_path: Path) -> None:
    first = install(cached, tmp_path / "images").stat().st_ino

    assert install(cached, tmp_path / "images").stat().st_ino == first


def test_an_image_of_the_same_name_and_other_content_is_replaced(
    cached: Path, tmp_path: Path
) -> None:
    install(cached, tmp_path / "images")
    newer = tmp_path / "cache/images" / ("cd" * 32)
    shutil.copytree(cached, newer)
    (newer / build.KERNEL).write_bytes(b"newer")
    manifest.write(newer, manifest.read_metadata(cached)[0], [build.KERNEL, build.INITRD])

    installed = install(newer, tmp_path / "images")

    assert manifest.digest(installed) == manifest.digest(newer) != manifest.digest(cached)
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["casemate-0.5.11"]


def test_a_damaged_installed_image_is_put_right(cached: Path, tmp_path: Path) -> None:
    installed = install(cached, tmp_path / "images")
    (installed / build.KERNEL).unlink()
    (installed / build.KERNEL).write_bytes(b"damaged")

    assert manifest.changed_files(install(cached, tmp_path / "images")) == []
