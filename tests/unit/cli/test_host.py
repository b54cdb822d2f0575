from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from cli.main import casemate
from core.config import Config
from image.registry import Image
from tests.common import rows
from vmm import accel


@pytest.fixture
def file(config: Config, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The test's configuration as a file, on a host without KVM."""
    for name in ("ADDRESS", "DATA_DIR", "ADMIN_TOKEN"):
        monkeypatch.delenv(f"CASEMATE_{name}", raising=False)
    monkeypatch.setattr(accel, "choose", lambda *_: accel.Accelerator("tcg", "max", "a test"))
    path = config.data_dir / "casemate.toml"
    path.write_text(
        f'data_dir = "{config.data_dir}"\n[cvm]\nqemu_path = "{config.cvm.qemu_path}"\n'
    )
    return path


def run(*words: object) -> Result:
    return CliRunner().invoke(casemate, [str(each) for each in words], catch_exceptions=False)


def test_the_doctor_fails_only_when_no_vm_could_run(file: Path, config: Config) -> None:
    without = run("doctor", "-c", file)
    assert without.exit_code == 1
    assert "✗ images" in without.stdout

    rows.image(config.image.path)
    assert run("doctor", "-c", file).exit_code == 0


def test_the_doctor_speaks_json(file: Path, image: Image) -> None:
    found = {each["name"]: each for each in json.loads(run("doctor", "-c", file, "--json").stdout)}

    assert found["QEMU"] == {"name": "QEMU", "state": "ok", "what": "7.2.22", "advice": ""}
    assert found["images"]["what"] == image.name


def test_the_doctor_leaves_no_data_directory_behind(
    file: Path, data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASEMATE_DATA_DIR", str(data_dir / "new"))

    run("doctor", "-c", file)

    assert not (data_dir / "new").exists()


def test_a_configuration_that_fits_is_valid(file: Path, config: Config) -> None:
    done = run("check-config", "-c", file)

    assert done.exit_code == 0
    lines = done.stdout.splitlines()
    assert f"QEMU      {config.cvm.qemu_path} (7.2.22)" in lines
    assert lines[-1] == "the configuration is valid"


def test_a_configuration_that_does_not_fit_this_host_fails(file: Path) -> None:
    file.write_text(file.read_text() + '[cvm.networking]\nbridge = "no-such-bridge"\n')

    done = run("check-config", "-c", file, "--json")

    assert done.exit_code == 1
    (wrong,) = json.loads(done.stdout)["wrong"]
    assert wrong == "cvm.networking.bridge: there is no bridge no-such-bridge on this host"


def test_an_unknown_key_warns_with_the_nearest(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    file.write_text("adress = 'unix:x'\n" + file.read_text())

    assert run("check-config", "-c", file).exit_code == 0
    assert "did you mean address?" in caplog.text
