from __future__ import annotations

import subprocess
import sys

import pytest

from core import faults
from core.errors import Invalid

ALLOWED = {"CASEMATE_FAULTS_ALLOWED": "1"}


@pytest.fixture(autouse=True)
def disarmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(faults, "_armed", None)


def test_without_the_variable_nothing_is_armed() -> None:
    faults.arm({}, simulated=False, tee="tdx")

    faults.point("create.checked")
    assert faults.environment() == {}


@pytest.mark.parametrize(
    ("environment", "simulated", "tee"),
    [
        ({}, True, ""),
        ({"CASEMATE_FAULTS_ALLOWED": "yes"}, True, ""),
        (ALLOWED, False, ""),
        (ALLOWED, True, "tdx"),
        (ALLOWED, True, "amd-sev-snp"),
    ],
)
def test_a_service_that_guards_something_refuses(
    environment: dict[str, str], simulated: bool, tee: str
) -> None:
    with pytest.raises(Invalid, match="for tests alone: unset it"):
        faults.arm(environment | {"CASEMATE_FAULT": "create.checked"}, simulated=simulated, tee=tee)

    assert faults.environment() == {}


@pytest.mark.parametrize(
    "value", ["nowhere", "create.checked:0", "create.checked:-1", "create.checked:x", ":1"]
)
def test_a_point_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(Invalid, match="must be NAME or NAME:N"):
        faults.arm(ALLOWED | {"CASEMATE_FAULT": value}, simulated=True, tee="")


def test_the_process_is_killed_at_the_pass_that_was_asked_for() -> None:
    program = (
        "from core import faults\n"
        "faults.arm({'CASEMATE_FAULT': 'start.asked:3', 'CASEMATE_FAULTS_ALLOWED': '1'},"
        " simulated=True, tee='')\n"
        "for number in range(9):\n"
        "    print(number, flush=True)\n"
        "    faults.point('start.wished')\n"
        "    faults.point('start.asked')\n"
    )

    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == -9
    assert done.stdout.split() == ["0", "1", "2"]
    assert done.stderr == "fault point start.asked\n"


def test_a_runner_is_told_the_point_alone() -> None:
    faults.arm(ALLOWED | {"CASEMATE_FAULT": "runner.spawned"}, simulated=True, tee="")

    assert faults.environment() == {"CASEMATE_FAULT": "runner.spawned"}
