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


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["nonsense"], 2, "No such command 'nonsense'"),
        (["vm", "logs"], 2, "Missing argument 'VM'"),
        (["check-config", "-c", "/nonexistent.toml"], 1, "casemate: /nonexistent.toml: "),
        (["agent"], 2, "--simulate"),
    ],
)
def test_a_failure_is_told_by_code_and_words(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
    code: int,
    told: str,
) -> None:
    monkeypatch.setattr(sys, "argv", ["casemate", *words])

    with pytest.raises(SystemExit) as ended:
        main.main()

    assert ended.value.code == code
    complaints = capsys.readouterr().err
    assert told in complaints
    assert "Traceback" not in complaints


@pytest.mark.parametrize(
    ("raised", "code", "told"),
    [
        (PermissionError(13, "Permission denied", "/data/admin-token"), 1, "/data/admin-token"),
        (OSError(28, "No space left on device"), 1, "No space left on device"),
        (KeyboardInterrupt(), 130, ""),
    ],
)
def test_what_the_host_or_the_user_does_is_no_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    raised: BaseException,
    code: int,
    told: str,
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(main.casemate, "invoke", fail)
    monkeypatch.setattr(sys, "argv", ["casemate", "vm"])

    with pytest.raises(SystemExit) as ended:
        main.main()

    assert ended.value.code == code
    assert told in capsys.readouterr().err


def test_a_database_is_made_by_hand(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASEMATE_DATA_DIR", str(data_dir / "data"))

    for _ in range(2):
        done = CliRunner().invoke(main.casemate, ["db", "upgrade"])
        assert done.exit_code == 0, done.output
        assert done.output == f"{data_dir}/data/casemate.db is up to date\n"

    with sqlite3.connect(data_dir / "data/casemate.db") as plain:
        assert plain.execute("SELECT count(*) FROM vms").fetchone() == (0,)
    plain.close()
