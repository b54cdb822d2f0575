"""`casemate`'s own commands of runs against a service; its jobs are processes of this machine."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner
from flask import Flask

from cli.main import casemate
from core.errors import CasemateError
from tests.api.runs.conftest import Api, Host
from tests.common.served import served
from tests.common.waiting import until

HELLO = "type: task\nname: hello\ncommands:\n  - echo hello world\nresources:\n  cpu: 1..\n  memory: 1GB..\n"
FLEET = "type: fleet\nname: default\nnodes: 0..1\nidle_duration: 1h\nresources:\n  cpu: 1..\n  memory: 1GB..\n  gpu: 0\n"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DSTACK_PROJECT", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".dstack.yml").write_text(HELLO)
    (tmp_path / "fleet.dstack.yml").write_text(FLEET)
    return tmp_path


@pytest.fixture
def url(app: Flask) -> Iterator[str]:
    with served(app) as url:
        yield url


class Program:
    """The program; what it prints to both streams is kept."""

    def __init__(self) -> None:
        self.stdout = ""
        self.stderr = ""

    def __call__(self, *args: str, given: str = "", code: int = 0) -> str:
        """What a command prints; it must end with `code`."""
        done = CliRunner().invoke(casemate, args, input=given, standalone_mode=False)
        self.stdout, self.stderr = done.stdout, done.stderr
        if isinstance(done.exception, CasemateError):
            assert code == 1, done.exception.message
            return done.exception.message
        if isinstance(done.exception, click.Abort):
            assert code == 1
            return done.output
        if done.exception is not None:
            raise done.exception
        assert (done.return_value or 0) == code, done.output
        return done.output

    def json(self, *args: str) -> Any:
        """What a command prints as JSON."""
        self(*args, "--json")
        return json.loads(self.stdout)


@pytest.fixture
def run(url: str, api: Api) -> Program:
    """The program, which knows project main."""
    program = Program()
    program("project", "add", "--name", "main", "--url", url, "--token", api.token)
    return program


def test_a_project_is_added_shown_and_forgotten(run: Program, url: str) -> None:
    assert run.json("project", "list") == [{"name": "main", "url": url, "default": True}]
    assert "admin" in run("project", "list", "-v")

    run("project", "delete", "--name", "main", code=1)
    assert [each["name"] for each in run.json("project", "list")] == ["main"]
    run("project", "delete", "--name", "main", "-y")

    assert run.json("project", "list") == []
    assert "casemate project add" in run("ps", code=1)


def test_a_wrong_token_is_refused_and_nothing_remembered(run: Program, url: str) -> None:
    said = run("project", "add", "--name", "x", "--url", url, "--token", "cm_no", code=1)

    assert "Invalid token" in said
    assert [each["name"] for each in run.json("project", "list")] == ["main"]


def test_a_fleet_is_made_shown_and_deleted(run: Program, background: Host) -> None:
    made = run("apply", "-f", "fleet.dstack.yml", "-y")
    assert "default" in made and "active" in made
    assert "Detected no changes" in run("apply", "-f", "fleet.dstack.yml", "-y")

    assert "default" in run("fleet")
    assert run.json("fleet", "get", "default")["spec"]["configuration"]["idle_duration"] == 3600
    assert run.json("fleet", "list")["project"] == "main"
    run("fleet", "delete", "default", "-y")
    until(lambda: not run.json("fleet", "list")["fleets"], what="the fleet's end")

    assert "not found" in run("fleet", "get", "default", code=1)


def test_offers_are_listed(run: Program) -> None:
    found = run.json("offer")

    assert found["total_offers"] >= len(found["offers"]) > 0
    assert "ssh (local)" in run("offer", "--max-offers", "1")
    assert "no offers" in run("offer", "--gpu", "H100")


def test_a_run_is_followed_to_its_end(run: Program, background: Host) -> None:
    run("apply", "-f", "fleet.dstack.yml", "-y")

    run("apply", "-y")

    assert run.stdout.endswith("hello world\n")
    assert "exited (0)" in run.stderr
    assert "hello" in run("ps", "-a")
    assert run.json("ps", "-a")["runs"][0]["status"] == "done"
    run("logs", "hello")
    assert run.stdout == "hello world\n"
    assert run.json("run", "get", "hello")["status"] == "done"
    assert "Run submitted. Status: SUBMITTED" in run("event")
    assert all("hello" in line for line in run("event", "--target-run", "hello").splitlines())
    assert "deleted" in run("delete", "-y")
    assert "not found" in run("run", "get", "hello", code=1)


def test_a_failed_run_ends_the_command_with_its_own_code(
    run: Program, background: Host, home: Path
) -> None:
    run("apply", "-f", "fleet.dstack.yml", "-y")
    (home / "fails.yml").write_text(HELLO.replace("echo hello world", "exit 7"))

    run("apply", "-f", "fails.yml", "-y", code=7)

    assert "exited (7)" in run.stderr


def test_a_plan_that_is_refused_submits_nothing(run: Program, api: Api) -> None:
    said = run("apply", given="n\n")

    assert "Resources" in said and "Submit the run hello? [y/n]" in said
    assert api.ask("/api/runs/list", {}) == []


def test_without_a_terminal_and_an_answer_nothing_is_submitted(run: Program, api: Api) -> None:
    run("apply", code=1)

    assert api.ask("/api/runs/list", {}) == []


def test_an_active_run_is_shown_with_what_changed_and_overridden(
    run: Program, api: Api, background: Host, home: Path
) -> None:
    run("apply", "-f", "fleet.dstack.yml", "-y")
    (home / "long.yml").write_text(HELLO.replace("echo hello world", "sleep 1000"))
    run("apply", "-f", "long.yml", "-y", "-d")
    first = api.until("hello", "running")["id"]

    same = run("apply", "-f", "long.yml", "-y", "-d")
    assert "Detected no changes" in same and "--force" in same
    changed = run("apply", "-y", "-d")

    assert "configuration.commands" in changed
    assert api.until("hello", "done")["id"] != first


def test_a_run_is_stopped_and_waited_for(
    run: Program, api: Api, background: Host, home: Path
) -> None:
    run("apply", "-f", "fleet.dstack.yml", "-y")
    (home / "long.yml").write_text(HELLO.replace("echo hello world", "sleep 1000"))
    run("apply", "-f", "long.yml", "-y", "-d")
    api.until("hello", "running")

    run("stop", "hello", "-y", "--wait")

    assert api.get("hello")["status"] == "terminated"
    assert "not found" in run("stop", "nobody", "-y", code=1)


def test_variables_come_from_the_file_the_command_line_and_the_environment(
    run: Program, background: Host, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run("apply", "-f", "fleet.dstack.yml", "-y")
    text = HELLO.replace("echo hello world", "echo $A $B $C") + "env:\n  - A=1\n  - B\n"
    (home / "env.yml").write_text(text)
    assert "B has no value" in run("apply", "-f", "env.yml", "-y", code=1)
    monkeypatch.setenv("B", "2")

    run("apply", "-f", "env.yml", "-y", "-e", "C=3")

    assert run.stdout.endswith("1 2 3\n")


@pytest.mark.parametrize(
    ("name", "text", "why"),
    [
        ("none.yml", None, "there is no file none.yml"),
        ("x.txt", "type: task", "ends in .yml"),
        ("x.yml", "[", "is not YAML"),
        ("x.yml", "type: nonsense", "must have a type"),
        ("x.yml", "type: task\nnmae: x\ncommands: [true]", "nmae"),
    ],
)
def test_a_bad_file_is_refused_in_a_sentence(
    run: Program, home: Path, name: str, text: str | None, why: str
) -> None:
    if text is not None:
        (home / name).write_text(text)

    assert why in run("apply", "-f", name, "-y", code=1)
