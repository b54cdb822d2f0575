from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from attest.artifacts import read
from core.errors import CasemateError, Upstream
from image import published
from image.packages import Package
from tests.unit.attest.test_artifacts import sev_json, tdx_csv


def wheel(cache: Path, **members: bytes) -> Package:
    """A wheel in the cache with these members, and the line of a lock that names it."""
    cache.mkdir(exist_ok=True)
    path = cache / published.PACKAGE.filename
    with zipfile.ZipFile(path, "w") as archive:
        for name in published.MEMBERS:
            if (content := members.get(Path(name).suffix[1:])) is not None:
                archive.writestr(name, content)
        archive.writestr("secretvm/__init__.py", "raise SystemExit")
    raw = path.read_bytes()
    return replace(published.PACKAGE, size=len(raw), sha256=hashlib.sha256(raw).hexdigest())


def test_two_files_are_read_out_of_the_wheel_and_nothing_else(tmp_path: Path) -> None:
    package = wheel(tmp_path / "cache", csv=tdx_csv({}), json=sev_json())

    published.install(tmp_path / "registry", tmp_path / "cache", lambda *_: None, package)

    folder = tmp_path / "registry"
    assert sorted(path.name for path in folder.iterdir()) == ["sev.json", "tdx.csv"]
    found = read([folder])
    assert (len(found.tdx), len(found.sev)) == (1, 1)


def test_a_wheel_without_them_or_with_something_else_is_refused(tmp_path: Path) -> None:
    for members in ({"csv": tdx_csv({})}, {"csv": b"x", "json": sev_json()}):
        package = wheel(tmp_path / "cache", **members)
        with pytest.raises(CasemateError):
            published.install(tmp_path / "registry", tmp_path / "cache", lambda *_: None, package)


def test_another_wheel_than_the_pinned_one_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_network(*_: object) -> dict[Package, Path]:
        raise Upstream("asked for the pinned one")

    package = wheel(tmp_path / "cache", csv=tdx_csv({}), json=sev_json())
    assert package.sha256 != published.PACKAGE.sha256
    monkeypatch.setattr("image.packages._download", no_network)
    with pytest.raises(Upstream, match="the pinned one"):
        published.install(tmp_path / "registry", tmp_path / "cache", lambda *_: None)
    assert not (tmp_path / "registry").exists()


def test_the_package_is_not_in_our_environment() -> None:
    import importlib.metadata

    with pytest.raises(importlib.metadata.PackageNotFoundError):
        importlib.metadata.distribution("secretvm-verify")
