"""`casemate image`: what it lists, what it says of broken folders, and what it removes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.client import Client
from cli.image import image
from core.errors import NotFound
from image import manifest
from vmm import discovery


@pytest.fixture
def images(tmp_path: Path) -> Path:
    """One image and one broken folder."""
    folder = tmp_path / "images/casemate-dev-0.5.11"
    folder.mkdir(parents=True)
    for name in ("bzImage", "initramfs.cpio.gz"):
        (folder / name).write_bytes(b"")
    metadata = {
        "kernel": "bzImage",
        "initrd": "initramfs.cpio.gz",
        "version": "0.5.11",
        "is_dev": True,
    }
    manifest.write(folder, metadata, ["bzImage"])
    (tmp_path / "images/broken").mkdir()
    return tmp_path / "images"


@pytest.fixture
def configuration(tmp_path: Path, images: Path) -> Path:
    """A configuration that names the folder."""
    path = tmp_path / "casemate.toml"
    path.write_text(f'data_dir = "/nonexistent"\n[image]\npath = "{images}"\n')
    return path


def run(*arguments: object) -> Result:
    """The command's result; refusals come as the exceptions that they are."""
    return CliRunner().invoke(image, [str(each) for each in arguments], catch_exceptions=False)


def test_a_listing_shows_name_version_kind_and_digest(configuration: Path, images: Path) -> None:
    _, line = run("ls", "-c", configuration).stdout.splitlines()

    digest = (images / "casemate-dev-0.5.11/digest.txt").read_text().strip()
    assert line.split() == ["casemate-dev-0.5.11", "0.5.11", "dev", digest]


def test_a_broken_folder_is_named_on_standard_error(configuration: Path) -> None:
    assert "image broken: metadata.json is missing" in run("ls", "-c", configuration).stderr


def test_a_listing_in_json_is_a_list(configuration: Path) -> None:
    (found,) = json.loads(run("ls", "--json", "-c", configuration).stdout)

    assert found["name"] == "casemate-dev-0.5.11"
    assert found["is_dev"] is True


def test_a_removed_image_is_gone(configuration: Path, images: Path) -> None:
    run("rm", "-c", configuration, "casemate-dev-0.5.11")

    assert [path.name for path in images.iterdir()] == ["broken"]


def test_removing_an_image_that_is_not_there_says_so(configuration: Path) -> None:
    with pytest.raises(NotFound, match="other-0.5.4"):
        run("rm", "-c", configuration, "other-0.5.4")


def test_the_running_services_folder_is_the_default(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CASEMATE_DATA_DIR", raising=False)
    running = [{"address": "unix:/x", "image_path": str(images)}]
    monkeypatch.setattr(discovery, "running", lambda: running)

    assert "casemate-dev-0.5.11" in run("ls").stdout
    monkeypatch.setenv("CASEMATE_DATA_DIR", "/nonexistent")
    assert "casemate-dev-0.5.11" not in run("ls").stdout


def test_a_service_on_the_same_folder_is_asked_before_an_image_goes(
    images: Path, configuration: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, object]] = []

    class Service:
        def call(self, path: str, **message: object) -> None:
            asked.append((path, message))

    running = [{"address": "unix:/x", "image_path": str(images)}]
    monkeypatch.setattr(discovery, "running", lambda: running)
    monkeypatch.setattr(Client, "found", classmethod(lambda cls: Service()))

    done = run("rm", "-c", configuration, "casemate-dev-0.5.11", "--json")

    assert asked == [("prpc/DeleteImage", {"id": "casemate-dev-0.5.11"})]
    assert json.loads(done.stdout) == {"name": "casemate-dev-0.5.11"}
    assert (images / "casemate-dev-0.5.11").exists()
