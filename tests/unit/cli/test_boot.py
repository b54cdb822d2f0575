from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest

from cli import boot
from cli.client import Client
from core.errors import NotFound


@dataclass
class Booting(Client):
    """A service whose VM shows one state after the other."""

    states: list[dict[str, str]] = field(default_factory=list)
    console: str = ""

    def info(self, vm_id: str) -> dict[str, Any]:
        state = self.states.pop(0) if len(self.states) > 1 else self.states[0]
        return {"boot_error": "", "boot_progress": "", "status": "running", **state}

    def follow(self, path: str) -> Iterator[str]:
        if not self.console:
            raise NotFound("VM not found")
        yield self.console


def booting(*states: dict[str, str], console: str = "") -> Booting:
    return Booting("tcp:127.0.0.1:1", "", states=list(states), console=console)


@pytest.fixture(autouse=True)
def hurry(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boot, "LOOK_S", 0.0)


def test_each_step_is_told_until_the_app_runs(capsys: pytest.CaptureFixture[str]) -> None:
    steps = ("", "booting", "booting", "setting up docker", "done")

    boot.watch(booting({"status": "starting"}, *({"boot_progress": s} for s in steps)), "id")

    told = [line.partition(" s  ")[2] for line in capsys.readouterr().err.splitlines()]
    assert told == ["starting", "running", "booting", "setting up docker", "done"]


def test_an_image_without_progress_is_not_waited_for() -> None:
    boot.watch(booting({"boot_progress": "N/A"}), "id")


@pytest.mark.parametrize(
    ("state", "why"),
    [
        ({"boot_error": "no keys\x1b[2J"}, "the VM did not boot: no keys [2J"),
        ({"status": "exited"}, "the VM did not boot: the VM is exited"),
        ({"boot_progress": "booting"}, "the boot was not done within 0 s"),
    ],
)
def test_a_failure_ends_with_its_reason_and_the_consoles_last_lines(
    capsys: pytest.CaptureFixture[str], state: dict[str, str], why: str
) -> None:
    service = booting({"boot_progress": "booting"}, state, console="last\x1b]0;x\x07 words\n")

    with pytest.raises(SystemExit) as ended:
        boot.watch(service, "id", within_s=0.05 if "boot_progress" in state else 60)

    assert ended.value.code == boot.BOOT_FAILED
    told = capsys.readouterr().err
    assert why in told
    assert "    last ]0;x  words\n" in told
    assert not set(told) & set("\x1b\x07")


def test_a_vm_that_is_gone_has_no_console(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        boot.watch(booting({"status": "removing"}), "id")

    assert capsys.readouterr().err == "casemate: the VM did not boot: the VM is removing\n"
