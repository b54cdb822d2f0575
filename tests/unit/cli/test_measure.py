from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from attest import eventlog, lite, snp_launch
from attest.errors import Malformed
from attest_sim.tdx import boot_events
from cli.measure import measure
from image import build, manifest
from tests.unit.attest.test_kernel import bzimage
from tests.unit.attest.test_snp_launch import sev_firmware
from tests.unit.attest.test_tdvf import BFV, HOB, TEMP, made

GIB = 1024**3


def image(folder: Path, *, sev: bool = False) -> Path:
    """An image with firmware, measured as a build does it."""
    files = {build.KERNEL: bytes(bzimage()), build.INITRD: b"initrd"}
    files[build.BIOS] = made(BFV, HOB, TEMP)
    named = {"kernel": build.KERNEL, "initrd": build.INITRD, "bios": build.BIOS}
    if sev:
        files[build.SEV_BIOS] = sev_firmware()
        named["bios-sev"] = build.SEV_BIOS
    directory = folder / "small-1.0.0"
    directory.mkdir(parents=True)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    build.measure(directory, "quiet")
    covered = [path.name for path in directory.iterdir()]
    manifest.write(directory, {**named, "version": "1.0.0", "cmdline": "quiet"}, covered)
    return directory


def run(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(measure, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0, result.output
    told: dict[str, Any] = json.loads(result.output)
    return told


def test_an_image_is_measured_as_verifiers_do_it(tmp_path: Path) -> None:
    folder = image(tmp_path)
    log = tmp_path / "log.json"
    log.write_text(eventlog.to_json(boot_events()))
    told = run(str(folder), "--cpu", "2", "--memory", "4096", "--event-log", str(log))

    measured = lite.decode((folder / lite.FILE).read_bytes())
    acpi = lite.acpi_digests(boot_events())
    expected = lite.registers(measured, 4 * GIB, acpi, single_pass=True)
    assert told["os_image_hash"] == manifest.digest(folder)
    assert told["tdx"]["mrtd_single_pass"] == expected.mrtd.hex()
    assert told["tdx"]["mrtd_two_pass"] == measured.mrtd_two_pass.hex()
    assert [told["tdx"][f"rtmr{imr}"] for imr in range(3)] == [r.hex() for r in expected.rtmrs]
    assert told["sev_snp"] is None


def test_a_log_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "log.json").write_bytes(b"\xff")

    with pytest.raises(Malformed, match="not valid JSON"):
        run(str(image(tmp_path)), "--event-log", str(tmp_path / "log.json"))


def test_rtmr0_is_unknown_without_an_event_log_and_rtmr1_depends_on_memory(tmp_path: Path) -> None:
    folder = image(tmp_path)
    small, large = run(str(folder), "--memory", "1024"), run(str(folder), "--memory", "4096")

    assert small["tdx"]["rtmr0"] is None
    assert small["tdx"]["rtmr1"] != large["tdx"]["rtmr1"]
    assert small["tdx"]["rtmr2"] == large["tdx"]["rtmr2"]


def test_sev_firmware_gives_a_launch_measurement(tmp_path: Path) -> None:
    folder = image(tmp_path, sev=True)
    one, two = run(str(folder), "--cpu", "1"), run(str(folder), "--cpu", "2")

    measured = snp_launch.decode((folder / snp_launch.FILE).read_bytes())
    from vmm.machine import SNP_CPU, SNP_FEATURES

    expected = snp_launch.digest(measured, 2, SNP_CPU, SNP_FEATURES)
    assert two["sev_snp"]["measurement"] == expected.hex()
    assert one["sev_snp"] != two["sev_snp"]


def test_an_image_without_firmware_has_nothing_to_measure(tmp_path: Path) -> None:
    from tests.common import rows

    told = run(str(rows.image(tmp_path).directory))

    assert (told["tdx"], told["sev_snp"]) == (None, None)
