from __future__ import annotations

from pathlib import Path

from attest import lite, snp_launch
from attest.os_image import KnownImage
from image import known, manifest
from tests.common import rows
from tests.unit.cli.test_measure import image


def hash_of(folder: Path) -> bytes:
    return bytes.fromhex(manifest.digest(folder))


def test_an_image_is_found_by_its_hash(tmp_path: Path) -> None:
    folder = image(tmp_path, sev=True)
    find = known.finder(tmp_path)

    assert find(hash_of(folder)) == KnownImage(
        "1.0.0", False, (folder / lite.FILE).read_bytes(), (folder / snp_launch.FILE).read_bytes()
    )
    assert find(bytes(32)) is None
    assert known.finder(tmp_path / "none")(bytes(32)) is None


def test_an_image_without_measurements_is_known_all_the_same(tmp_path: Path) -> None:
    tiny = rows.image(tmp_path, is_dev=True)

    assert known.finder(tmp_path)(hash_of(tiny.directory)) == KnownImage("0.5.4", True)


def test_a_measurement_that_the_hash_does_not_bind_is_not_used(tmp_path: Path) -> None:
    folder = image(tmp_path)
    (folder / lite.FILE).write_bytes(b"other")

    found = known.finder(tmp_path)(hash_of(folder))
    assert found is not None
    assert found.tdx is None
