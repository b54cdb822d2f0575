from __future__ import annotations

import json
from pathlib import Path

from attest import lite, snp_launch
from attest.os_image import KnownImage
from image import build, known, manifest
from tests.common import rows
from tests.common.evidence import MEASURED
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


def without_measurement(tmp_path: Path, **metadata: str) -> Path:
    """An image as they were built before images had measurements."""
    folder = image(tmp_path)
    (folder / lite.FILE).unlink()
    described = json.loads((folder / manifest.METADATA).read_text()) | metadata
    manifest.write(folder, described, (build.KERNEL, build.INITRD, build.BIOS))
    return folder


def test_an_older_image_is_measured_by_whoever_has_it(tmp_path: Path) -> None:
    measured = (image(tmp_path / "new") / lite.FILE).read_bytes()
    folder = without_measurement(tmp_path)

    found = known.finder(tmp_path)(hash_of(folder))
    assert found is not None
    assert found.tdx == measured


def test_an_older_image_that_was_changed_or_has_other_firmware_is_not(tmp_path: Path) -> None:
    changed, other = tmp_path / "changed", tmp_path / "other"
    (without_measurement(changed) / build.KERNEL).write_bytes(b"other")
    without_measurement(other, ovmf_variant="stable202505")

    for path in (changed, other):
        found = known.finder(path)(hash_of(path / "small-1.0.0"))
        assert found is not None
        assert found.tdx is None


def test_an_older_image_whose_firmware_is_none_is_known_without_measurement(tmp_path: Path) -> None:
    folder = without_measurement(tmp_path)
    (folder / build.BIOS).write_bytes(b"no firmware")
    described = json.loads((folder / manifest.METADATA).read_text())
    manifest.write(folder, described, (build.KERNEL, build.INITRD, build.BIOS))

    found = known.finder(tmp_path)(hash_of(folder))
    assert found is not None
    assert found.tdx is None


def test_an_image_is_known_by_the_registers_of_its_vms(tmp_path: Path) -> None:
    folder = tmp_path / "small-1.0.0"
    folder.mkdir()
    files = {"bzImage": b"k", "initrd": b"i", lite.FILE: lite.encode(MEASURED)}
    for name, content in files.items():
        (folder / name).write_bytes(content)
    metadata = {"version": "1.0.0", "kernel": "bzImage", "initrd": "initrd", "is_dev": True}
    digest = manifest.write(folder, metadata, list(files))
    acpi = (b"\x01" * 48, b"\x02" * 48, b"\x03" * 48)

    for single_pass in (True, False):
        for memory_gb in (2, 3, 64):
            made = lite.registers(MEASURED, memory_gb * 1024**3, acpi, single_pass=single_pass)
            (found,) = known.measured(tmp_path, (made.mrtd, *made.rtmrs), acpi)
            assert (found.size, found.environment, found.version, found.rootfs.hex()) == (
                f"{memory_gb}gb",
                "dev",
                "1.0.0",
                digest,
            )
    made = lite.registers(MEASURED, 2 * 1024**3, acpi, single_pass=True)
    assert known.measured(tmp_path, (made.mrtd, *made.rtmrs), acpi[::-1]) == []
