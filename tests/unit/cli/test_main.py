from __future__ import annotations

import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli import main
from core.errors import Conflict

CASEMATE = Path(sys.executable).with_name("casemate")


@pytest.mark.parametrize("name", main.COMMANDS)
def test_every_command_is_there_and_helps(name: str) -> None:
    done = CliRunner().invoke(main.casemate, [name, "--help"])

    assert done.exit_code == 0
    assert f"Usage: casemate {name}" in done.output


def test_an_unknown_command_is_refused() -> None:
    done = CliRunner().invoke(main.casemate, ["nonsense"])

    assert done.exit_code == 2
    assert "No such command 'nonsense'" in done.output


def test_the_version_is_the_packages() -> None:
    done = CliRunner().invoke(main.casemate, ["--version"])

    assert done.exit_code == 0
    assert "0." in done.output


def test_commands_are_not_imported_before_they_are_called() -> None:
    program = "import sys, cli.main; print(*[name for name in sys.modules])"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )

    assert not {"flask", "sqlalchemy", "gunicorn", "vmm"} & set(done.stdout.split())


def test_a_refusal_is_one_line_and_a_code(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(**_: object) -> None:
        raise Conflict("the data directory is in use")

    monkeypatch.setattr(main, "casemate", refuse)

    with pytest.raises(SystemExit) as ended:
        main.main()

    assert ended.value.code == 1
    assert capsys.readouterr().err == "casemate: the data directory is in use\n"


def test_a_database_is_made_by_hand(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASEMATE_DATA_DIR", str(data_dir / "data"))

    for _ in range(2):
        done = CliRunner().invoke(main.casemate, ["db", "upgrade"])
        assert done.exit_code == 0, done.output
        assert done.output == f"{data_dir}/data/casemate.db is up to date\n"

    with sqlite3.connect(data_dir / "data/casemate.db") as plain:
        assert plain.execute("SELECT count(*) FROM vms").fetchone() == (0,)
    plain.close()
