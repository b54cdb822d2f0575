"""The description files of an image folder."""

from __future__ import annotations

import hashlib
import json
import os
from pathlib import Path

import pytest

from core.errors import Invalid
from image import manifest


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A finished image of one kernel."""
    (tmp_path / "bzImage").write_bytes(b"kernel")
    manifest.write(tmp_path, {"kernel": "bzImage"}, ["bzImage"])
    return tmp_path


def test_the_digest_is_that_of_the_list_of_sums(folder: Path) -> None:
    sums = (folder / "sha256sum.txt").read_bytes()

    assert manifest.digest(folder) == hashlib.sha256(sums).hexdigest()
    assert (folder / "digest.txt").read_text().strip() == manifest.digest(folder)


def test_the_list_of_sums_is_what_sha256sum_checks(folder: Path) -> None:
    lines = (folder / "sha256sum.txt").read_text().splitlines()

    assert f"{hashlib.sha256(b'kernel').hexdigest()}  bzImage" in lines
    assert [line.split("  ")[1] for line in lines] == ["bzImage", "metadata.json"]


def test_equal_content_gives_an_equal_digest(folder: Path) -> None:
    before = manifest.digest(folder)

    again = manifest.write(folder, {"kernel": "bzImage"}, ["bzImage"])

    assert again == before


def test_an_untouched_image_has_no_changed_files(folder: Path) -> None:
    assert manifest.changed_files(folder) == []


def test_a_changed_file_is_named(folder: Path) -> None:
    manifest.changed_files(folder)
    (folder / "bzImage").write_bytes(b"kermel")

    assert manifest.changed_files(folder) == ["bzImage"]


def test_a_change_under_the_old_time_stamp_is_seen(folder: Path) -> None:
    manifest.changed_files(folder)
    status = (folder / "bzImage").stat()
    (folder / "bzImage").write_bytes(b"kermel")
    os.utime(folder / "bzImage", ns=(status.st_atime_ns, status.st_mtime_ns))

    assert manifest.changed_files(folder) == ["bzImage"]


def test_a_missing_file_is_named(folder: Path) -> None:
    (folder / "bzImage").unlink()

    assert manifest.changed_files(folder) == ["bzImage"]


def test_changed_metadata_is_named(folder: Path) -> None:
    (folder / "metadata.json").write_text('{"kernel": "other"}')

    assert manifest.changed_files(folder) == ["metadata.json"]


def test_a_list_of_sums_of_another_image_is_named_by_the_digest(folder: Path) -> None:
    (folder / "bzImage").write_bytes(b"kermel")
    sums = (folder / "sha256sum.txt").read_text()
    old, new = (hashlib.sha256(text).hexdigest() for text in (b"kernel", b"kermel"))
    (folder / "sha256sum.txt").write_text(sums.replace(old, new))

    assert manifest.changed_files(folder) == ["digest.txt"]


def test_a_list_of_sums_with_another_line_is_refused(folder: Path) -> None:
    (folder / "sha256sum.txt").write_text(f"{'ab' * 32}  ../../etc/passwd\n")

    with pytest.raises(Invalid, match=r"sha256sum.txt"):
        manifest.changed_files(folder)


@pytest.mark.parametrize("text", ["", "[]", "{", '"x"', "\ud800"])
def test_metadata_that_is_no_object_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "metadata.json").write_bytes(text.encode(errors="surrogatepass"))

    with pytest.raises(Invalid, match=r"metadata.json"):
        manifest.read_metadata(tmp_path)


def test_metadata_comes_with_its_exact_text(tmp_path: Path) -> None:
    text = json.dumps({"b": 1, "a": 2}, indent=7)
    (tmp_path / "metadata.json").write_text(text)

    assert manifest.read_metadata(tmp_path) == ({"a": 2, "b": 1}, text)
