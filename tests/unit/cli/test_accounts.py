"""`casemate user`, `token` and `project` on the database of a data directory."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from accounts.credentials import Credentials
from accounts.service import Accounts
from cli.main import casemate
from core.config import Config
from core.errors import CasemateError, NotFound
from models.base import Database


@pytest.fixture(autouse=True)
def _environment(
    data_dir: Path, database: Database, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.setenv("CASEMATE_DATA_DIR", str(data_dir))


def run(*arguments: str) -> Result:
    done = CliRunner().invoke(casemate, arguments)
    if isinstance(done.exception, CasemateError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return done


def test_a_users_token_is_printed_once_and_works(config: Config, database: Database) -> None:
    run("user", "add", "alice", "--email", "alice@example.org")
    token = run("token", "add", "alice", "--name", "laptop").stdout.strip()

    accounts = Accounts.of(replace(config, admin_token="x"), database)
    assert accounts.authenticate(Credentials((token,))).name == "alice"
    for command in (("token", "list"), ("token", "list", "alice", "--json"), ("user", "list")):
        shown = run(*command).output
        assert "alice" in shown
        assert token not in shown


def test_what_is_read_is_json_on_request() -> None:
    run("user", "add", "alice", "--admin")
    run("project", "create", "team", "--owner", "alice")
    run("token", "add", "alice", "--project", "team", "--days", "7")

    users = json.loads(run("user", "list", "--json").stdout)
    (token,) = json.loads(run("token", "list", "--json").stdout)
    projects = {
        each["name"]: each for each in json.loads(run("project", "members", "--json").stdout)
    }

    assert [(user["name"], user["role"]) for user in users] == [
        ("admin", "admin"), ("alice", "admin"),
    ]  # fmt: skip
    assert (token["user"], token["project"], token["revoked_ms"]) == ("alice", "team", None)
    assert token["expires_ms"] - token["created_ms"] == 7 * 86_400_000
    assert set(projects) == {"main", "alice", "team"}
    assert projects["team"]["members"] == [{"user": "alice", "role": "admin", "is_owner": True}]


def test_a_token_says_how_it_stands() -> None:
    run("user", "add", "alice")
    run("token", "add", "alice")
    run("token", "add", "alice", "--days", "1")
    (first, _) = json.loads(run("token", "list", "--json").stdout)

    assert "valid" in run("token", "list").stdout
    assert "until 2" in run("token", "list").stdout
    run("token", "revoke", first["id"])
    assert "revoked" in run("token", "list").stdout
    run("user", "update", "alice", "--inactive")
    assert "inactive" in run("token", "list").stdout
    run("user", "update", "alice", "--active", "--role", "admin", "--email", "a@b")

    assert "a@b" in run("user", "list").stdout


def test_members_come_and_go() -> None:
    run("user", "add", "alice")
    run("project", "grant", "main", "alice", "--role", "manager")
    assert "alice  manager" in run("project", "members", "main").stdout

    run("project", "withdraw", "main", "alice")
    assert "alice" not in run("project", "members", "main").stdout
    run("user", "remove", "alice")
    assert "alice" not in run("user", "list").stdout
    run("project", "remove", "alice")

    assert "alice" not in run("project", "members").stdout


def test_a_refusal_says_why() -> None:
    with pytest.raises(NotFound, match="there is no user nobody"):
        run("token", "add", "nobody")
    with pytest.raises(NotFound, match="there is no project nowhere"):
        run("project", "members", "nowhere")


def test_no_database_is_made_in_a_wrong_folder(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CASEMATE_DATA_DIR", str(data_dir / "elsewhere"))

    with pytest.raises(NotFound, match=r"elsewhere/casemate.db holds no accounts; name the"):
        run("user", "list")

    assert not (data_dir / "elsewhere").exists()


def test_a_file_without_tables_is_told_apart(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (data_dir / "new").mkdir()
    (data_dir / "new/casemate.db").touch()
    monkeypatch.setenv("CASEMATE_DATA_DIR", str(data_dir / "new"))

    with pytest.raises(NotFound, match="run `casemate db upgrade`"):
        run("user", "list")


def test_the_service_that_runs_here_is_found(
    data_dir: Path, monkeypatch: pytest.MonkeyPatch, config: Config
) -> None:
    from vmm import discovery

    monkeypatch.delenv("CASEMATE_DATA_DIR")
    (data_dir / "here").mkdir()
    monkeypatch.chdir(data_dir / "here")
    with pytest.raises(NotFound):
        run("user", "list")

    discovery.announce(config, None)

    assert "admin" in run("user", "list").stdout


def test_a_configuration_file_names_the_database(
    data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CASEMATE_DATA_DIR")
    file = tmp_path / "casemate.toml"
    file.write_text(f'data_dir = "{data_dir}"\n')

    assert "main" in run("project", "members", "-c", str(file)).stdout
