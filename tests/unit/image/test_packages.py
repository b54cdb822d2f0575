"""The lock file: what is read from it, what is refused, and what a line means."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from core.errors import Invalid
from image import recipe
from image.packages import LOCK_FILE, Package, fetch, format_lock, parse_lock

GOOD = f"root kmod 34.2-2 95704 {'ab' * 32} http://deb.debian.org/debian/pool/main/k/kmod/kmod_34.2-2_amd64.deb"


def locked(content: bytes, name: str = "kmod") -> Package:
    """A package whose file holds `content`."""
    digest = hashlib.sha256(content).hexdigest()
    return Package("root", name, "1", len(content), digest, f"http://mirror.invalid/{name}_1.deb")


def silent(step: str, fraction: float | None, text: str) -> None:
    """Progress that nobody looks at."""


def test_a_line_of_the_lock_file_is_a_package() -> None:
    (package,) = parse_lock(f"# a comment\n\n{GOOD}\n")

    assert package.name == "kmod"
    assert package.size == 95704
    assert package.filename == "kmod_34.2-2_amd64.deb"


def test_a_file_name_is_the_decoded_end_of_the_url() -> None:
    (package,) = parse_lock(GOOD.replace("34.2-2_amd64", "1%3a34%2bdeb13_amd64"))

    assert package.filename == "kmod_1:34+deb13_amd64.deb"


@pytest.mark.parametrize(
    "line",
    [
        "root kmod 34.2-2 95704",
        GOOD.replace("root", "boat"),
        GOOD.replace("95704", "many"),
        GOOD.replace("abab", "xxab"),
        GOOD.replace("abab", "ab"),
        GOOD.rsplit("/", 1)[0] + "/..",
        GOOD.rsplit("/", 1)[0] + "/%2e%2e%2fetc",
        GOOD + " more",
    ],
)
def test_a_line_that_is_no_package_is_refused_by_number(line: str) -> None:
    with pytest.raises(Invalid, match="line 2 "):
        parse_lock(f"{GOOD}\n{line}\n")


def test_a_lock_file_reads_back_as_it_was_written() -> None:
    packages = [locked(b"b", "b"), locked(b"a", "a")]

    assert parse_lock(format_lock(packages)) == sorted(packages)


def test_the_lock_file_in_the_tree_holds_what_the_recipe_asks_for() -> None:
    packages = parse_lock(LOCK_FILE.read_text())

    names = {package.name for package in packages}
    assert set(recipe.ROOT_PACKAGES) <= names
    assert not names & recipe.EXCLUDED_PACKAGES
    assert {p.name for p in packages if p.kind == "wheel"} == {
        wheel.split(">")[0].split("=")[0] for wheel in recipe.WHEELS
    }
    assert next(p.name for p in packages if p.kind == "kernel").endswith("-cloud-amd64")


def test_packages_in_the_cache_are_not_fetched_again(tmp_path: Path) -> None:
    package = locked(b"content")
    (tmp_path / package.filename).write_bytes(b"content")

    found = fetch([package], tmp_path, silent)

    assert found == {package: tmp_path / package.filename}
