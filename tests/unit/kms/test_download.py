"""Images from elsewhere: kept when they are what their hash says, and never otherwise."""

from __future__ import annotations

import io
import re
import tarfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from image import manifest
from image.registry import Image
from kms import download, images
from kms.download import Downloads
from kms.settings import ImageSettings
from tests.common import rows
from tests.unit.kms.test_authz import Service

Archive = Callable[[tarfile.TarFile], None]


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    threading.Thread(target=made.serve_forever, args=[0.01], daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return rows.image(tmp_path / "published")


@pytest.fixture
def settings(tmp_path: Path, service: Service) -> ImageSettings:
    return ImageSettings(
        cache_dir=tmp_path / "cache", download_url=f"{service.url}/mr_{{OS_IMAGE_HASH}}.tar.gz"
    )


def packed(fill: Archive, kind: str = "gz") -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode=f"w:{kind}") as archive:
        fill(archive)
    return out.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes = b"x") -> None:
    member = tarfile.TarInfo(name)
    member.size = len(content)
    archive.addfile(member, io.BytesIO(content))


def left(settings: ImageSettings) -> list[str]:
    return sorted(path.name for path in (settings.cache_dir / "images").iterdir())


@pytest.mark.parametrize(("folder", "kind"), [("", "gz"), ("dstack-0.5.4", "xz"), ("./a", "")])
def test_an_image_is_fetched_once_and_known_from_then_on(
    service: Service, settings: ImageSettings, image: Image, folder: str, kind: str
) -> None:
    service.body = packed(lambda archive: archive.add(image.directory, folder or "."), kind)
    find = images.finder(settings)

    for _ in range(2):
        found = find(bytes.fromhex(image.digest))
        assert found is not None and (found.version, found.is_dev) == ("0.5.4", False)

    assert [path for _, path, _, _ in service.asked] == [f"/mr_{image.digest}.tar.gz"]
    assert left(settings) == [".lock", image.digest]


def test_an_image_that_another_process_fetched_meanwhile_is_not_fetched_again(
    service: Service, settings: ImageSettings, image: Image
) -> None:
    service.body = packed(lambda archive: archive.add(image.directory, "."))

    assert [Downloads(settings).fetch(image.digest) for _ in range(2)] == [True, True]
    assert len(service.asked) == 1


def test_an_image_of_the_local_folder_is_not_fetched(
    service: Service, tmp_path: Path, image: Image
) -> None:
    settings = ImageSettings(
        local_dir=tmp_path / "published", cache_dir=tmp_path / "cache", download_url=service.url
    )

    assert images.finder(settings)(bytes.fromhex(image.digest)) is not None
    assert service.asked == []


def test_without_an_address_nothing_is_asked(tmp_path: Path) -> None:
    assert images.finder(ImageSettings(cache_dir=tmp_path))(bytes(32)) is None
    assert list(tmp_path.iterdir()) == []


def altered(image: Image, name: str) -> Archive:
    def fill(archive: tarfile.TarFile) -> None:
        (image.directory / name).write_bytes(b"{}")
        archive.add(image.directory, ".")

    return fill


def unlisted_description(image: Image) -> Archive:
    sums = image.directory / manifest.SUMS
    lines = [line for line in sums.read_text().splitlines(True) if manifest.METADATA not in line]
    sums.write_text("".join(lines))
    (image.directory / manifest.DIGEST).write_text(manifest.digest(image.directory))
    return lambda archive: archive.add(image.directory, ".")


@pytest.mark.parametrize(
    ("fill", "why"),
    [
        (lambda image: altered(image, "bzImage"), "bzImage of the archive are not what"),
        (lambda image: altered(image, "metadata.json"), "metadata.json of the archive are not"),
        (lambda image: altered(image, "sha256sum.txt"), "holds another image"),
        (unlisted_description, "does not list metadata.json"),
        (lambda image: lambda archive: None, "holds another image"),
        (lambda image: lambda archive: add(archive, "../.."), "whose name no image file has"),
        (lambda image: lambda archive: add(archive, "a/.hidden"), "whose name no image file has"),
        (
            lambda image: lambda archive: [add(archive, name) for name in ("a", "b/a")],
            "cannot be read: .*exists",
        ),
        (
            lambda image: lambda archive: [add(archive, f"a{n}") for n in range(65)],
            "more than 64 entries",
        ),
    ],
)
def test_what_is_not_the_image_is_not_kept(
    service: Service,
    settings: ImageSettings,
    image: Image,
    fill: Callable[[Image], Archive],
    why: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    wanted = image.digest
    service.body = packed(fill(image))
    if fill is unlisted_description:
        wanted = manifest.digest(image.directory)

    assert not Downloads(settings).fetch(wanted)

    assert left(settings) == [".lock"]
    assert re.search(why, caplog.text), caplog.text


@pytest.mark.parametrize("body", [b"", b"no archive", b"\x1f\x8b\x08\x00" + bytes(99)])
def test_what_is_no_archive_is_not_kept(
    service: Service, settings: ImageSettings, image: Image, body: bytes
) -> None:
    service.body = body

    assert not Downloads(settings).fetch(image.digest)
    assert left(settings) == [".lock"]


def test_a_service_that_refuses_or_sends_too_much_is_named_in_the_log(
    service: Service,
    settings: ImageSettings,
    image: Image,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service.status = 404
    assert not Downloads(settings).fetch(image.digest)
    assert "refused: status 404" in caplog.text

    service.status, service.body = 200, bytes(1001)
    monkeypatch.setattr(download, "MAX_ARCHIVE", 1000)
    assert not Downloads(settings).fetch(image.digest)
    assert "answered with too many bytes" in caplog.text


def test_an_archive_that_unpacks_to_too_much_is_left(
    service: Service,
    settings: ImageSettings,
    image: Image,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    service.body = packed(lambda archive: add(archive, "large", bytes(1001)))
    monkeypatch.setattr(download, "MAX_IMAGE", 1000)

    assert not Downloads(settings).fetch(image.digest)
    assert "the image has more than 1000 bytes" in caplog.text


def test_a_link_in_an_archive_is_passed_over(tmp_path: Path) -> None:
    def fill(archive: tarfile.TarFile) -> None:
        for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE):
            link = tarfile.TarInfo("link")
            link.type, link.linkname = kind, "/etc/passwd"
            archive.addfile(link)
        add(archive, "file")

    download.unpack(io.BytesIO(packed(fill)), tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["file"]
