from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import Result

from cli import completion
from cli.client import Client
from cli.main import COMMANDS
from core.errors import Unavailable
from tests.common import rows
from tests.unit.cli.conftest import Wired

CASEMATE = Path(sys.executable).with_name("casemate")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_its_script(run: Callable[..., Result], shell: str) -> None:
    script = run("completion", shell).stdout

    assert f"_CASEMATE_COMPLETE={shell}_complete" in script


def test_names_and_ids_of_vms_are_offered(wired: Wired) -> None:
    ids = [
        wired.call("prpc/CreateVm", **rows.request(stopped=True, name=name))["id"]
        for name in ("web", "with space")
    ]

    offered = {each.value for each in completion.vms(None, None, "")}  # type: ignore[arg-type]

    assert offered == {"web", *ids}
    assert [each.value for each in completion.vms(None, None, "we")] == ["web"]  # type: ignore[arg-type]


def test_images_are_offered(wired: Wired) -> None:
    found = [each.value for each in completion.images(None, None, "tiny")]  # type: ignore[arg-type]

    assert found == [rows.IMAGE]


def test_no_service_offers_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(cls: type[Client]) -> Client:
        raise Unavailable("no running service was found")

    monkeypatch.setattr(Client, "found", classmethod(fail))

    assert completion.vms(None, None, "") == []  # type: ignore[arg-type]


def test_the_first_word_is_completed_without_importing_commands(tmp_path: Path) -> None:
    env = {**os.environ, "_CASEMATE_COMPLETE": "bash_complete", "COMP_CWORD": "1"}
    done = subprocess.run(
        [sys.executable, "-X", "importtime", CASEMATE],
        env={**env, "COMP_WORDS": "casemate "},
        capture_output=True,
        text=True,
        check=True,
    )

    assert {line.partition(",")[2] for line in done.stdout.splitlines()} >= set(COMMANDS)
    for heavy in ("gunicorn", "flask", "requests", "cli.vm"):
        assert f"| {heavy}\n" not in done.stderr.replace(" " * 2, "")
