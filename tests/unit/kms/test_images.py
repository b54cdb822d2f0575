from __future__ import annotations

from pathlib import Path

import pytest

from core.errors import Invalid
from kms import images

HASH = "ab" * 32


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    for name in (f"cache/images/{HASH}", f"cache/images/{'cd' * 32}", f"cache/configs/{HASH}"):
        (tmp_path / name).mkdir(parents=True)
    (tmp_path / "keep").mkdir()
    return tmp_path / "cache"


def left(cache: Path) -> list[str]:
    return sorted(str(path.relative_to(cache)) for path in cache.glob("*/*"))


def test_an_image_is_removed_by_its_hash(cache: Path) -> None:
    images.clear(cache, HASH, "")

    assert left(cache) == [f"configs/{HASH}", f"images/{'cd' * 32}"]


def test_all_of_a_kind_can_be_removed(cache: Path) -> None:
    images.clear(cache, "all", HASH)

    assert left(cache) == []


@pytest.mark.parametrize(
    "name",
    ["../keep", f"../{HASH}", "..", ".", "/", f"{HASH}/..", f"{HASH}\n", HASH.upper(), HASH[:-1]]
    + [f"{HASH}0", "ALL", "al", "*", "\0", f"./{HASH}", "%2e%2e"],
)
def test_a_name_that_is_no_hash_never_becomes_a_path(cache: Path, name: str) -> None:
    before = left(cache)

    for names in ((name, ""), ("", name), ("all", name), (name, "all")):
        field = "image_hash" if names[0] == name else "config_hash"
        with pytest.raises(Invalid, match=f"{field}: must be 64 lower-case hex digits"):
            images.clear(cache, *names)

    assert left(cache) == before
    assert (cache.parent / "keep").is_dir()
