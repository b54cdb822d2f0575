"""The systemd unit that is shipped: it says what keeps VMs alive, and systemd reads it without a complaint."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "contrib/systemd/casemate.service"


def unit() -> configparser.SectionProxy:
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return parser["Service"]


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("Type", "notify"),  # gunicorn says READY=1: tests/system/test_nginx.py
        ("KillMode", "process"),  # else stopping the service stops every VM
        ("Restart", "always"),
        ("UMask", "0077"),
        ("User", "casemate"),
        ("SupplementaryGroups", "kvm"),
        ("OOMPolicy", "continue"),
    ],
)
def test_the_unit_says(key: str, value: str) -> None:
    assert unit()[key] == value


@pytest.mark.parametrize(
    "forbidden",
    [
        "PrivateDevices",  # /dev/kvm
        "MemoryDenyWriteExecute",  # QEMU's emulator
        "RestrictNamespaces",  # QEMU's sandbox, passt
        "PrivateNetwork",
        "PrivateUsers",  # group kvm
        "SystemCallFilter",
    ],
)
def test_the_unit_does_not_break_qemu(forbidden: str) -> None:
    assert forbidden not in unit()


def test_the_command_of_the_unit_exists() -> None:
    from cli.main import COMMANDS

    program, command, *rest = unit()["ExecStart"].split()

    assert program.endswith("/.venv/bin/casemate")
    assert command in COMMANDS
    assert rest == ["-c", "/etc/casemate/casemate.toml"]


def test_systemd_reads_the_unit(tmp_path: Path) -> None:
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd is not installed")
    installed = tmp_path / "casemate.service"
    here = unit()["ExecStart"].split()[0]
    installed.write_text(UNIT.read_text().replace(here, sys.executable))

    done = subprocess.run(
        [analyze, "verify", "--man=no", installed], capture_output=True, text=True, check=False
    )

    assert (done.returncode, done.stdout + done.stderr) == (0, "")
