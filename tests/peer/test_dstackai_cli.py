"""dstack's own command line, unchanged, against the runs interface; its jobs are processes of this machine."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from flask import Flask

from core.config import Config
from tests.api.runs.conftest import Api, Host, background, sweeper  # noqa: F401 - the fixtures
from tests.api.runs.test_rolling import serving  # noqa: F401 - the fixture
from tests.common.served import served
from tests.common.waiting import until

FLEET = "type: fleet\nname: default\nnodes: 0..1\nidle_duration: 1h\nresources:\n  gpu: 0\n"
HELLO = "type: task\nname: hello\ncommands:\n  - echo hello world\n"
LONG = "type: task\nname: long\ncommands:\n  - echo begun\n  - sleep 100\n"
WEB = (
    "type: service\nname: web\nport: 8000\nreplicas: 1\ncommands:\n  - {command}\n"
    "env:\n  - WORD={word}\nstop_duration: 5\n"
)


@dataclass
class Cli:
    """The `dstack` program with a home of its own."""

    packages: Path
    home: Path

    def run(self, *args: str, given: str = "", code: int = 0, within_s: float = 120) -> str:
        """What a command prints; it must end with `code`."""
        process = self.start(*args)
        try:
            said = process.communicate(given, timeout=within_s)[0]
        finally:
            process.kill()
        assert process.returncode == code, said
        assert "Traceback" not in said
        return said

    def start(self, *args: str) -> subprocess.Popen[str]:
        """A command that was begun; all that it prints is its output."""
        program = (
            "import sys; from dstack._internal.cli.main import main; sys.argv[0] = 'dstack'; main()"
        )
        return subprocess.Popen(
            [sys.executable, "-c", program, *args],
            cwd=self.home,
            env={
                "HOME": str(self.home),
                "PATH": os.environ["PATH"],
                "PYTHONPATH": str(self.packages),
                "COLUMNS": "200",
                "NO_COLOR": "1",
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )


@pytest.fixture
def url(app: Flask) -> Iterator[str]:
    """The application on a port."""
    with served(app) as url:
        yield url


@pytest.fixture
def cli(peer_dstackai: Path, tmp_path: Path, url: str, api: Api) -> Cli:
    """The program, which knows project main."""
    cli = Cli(peer_dstackai, tmp_path)
    (tmp_path / "fleet.dstack.yml").write_text(FLEET)
    (tmp_path / ".dstack.yml").write_text(HELLO)
    (tmp_path / "long.dstack.yml").write_text(LONG)
    cli.run("project", "add", "--name", "main", "--url", url, "--token", api.token, "-y")
    return cli


@pytest.fixture
def api(app: Flask, config: Config) -> Api:
    """Whoever looks at what the program did."""
    return Api(app.test_client(), (config.data_dir / "admin-token").read_text().strip())


def test_a_wrong_token_is_refused_in_a_sentence(cli: Cli, url: str) -> None:
    said = cli.run("project", "add", "--name", "x", "--url", url, "--token", "cm_no", "-y", code=1)

    assert "denied" in said


def test_fleets_are_applied_listed_and_deleted(cli: Cli, background: Host) -> None:  # noqa: F811
    applied = cli.run("apply", "-f", "fleet.dstack.yml", "-y", "-d")
    again = cli.run("apply", "-f", "fleet.dstack.yml", "-y", "-d")
    listed = cli.run("fleet")
    got = json.loads(cli.run("fleet", "get", "default", "--json"))
    cli.run("fleet", "delete", "default", "-y")
    missing = cli.run("fleet", "get", "default", "--json", code=1)

    assert "default" in applied
    assert "No configuration changes" in again
    assert "0..1" in listed
    assert got["spec"]["configuration"]["idle_duration"] == 3600
    assert "not found" in missing.lower()


def test_offers_are_the_sizes_of_the_host(cli: Cli) -> None:
    offers = json.loads(cli.run("offer", "--json"))
    gpus = cli.run("offer", "--gpu", "H100", "--max-offers", "10")

    assert offers["total_offers"] == len(offers["offers"])
    assert offers["total_offers"] > 0
    assert "No matching instance offers" in gpus


def test_a_detached_run_is_seen_to_its_end(cli: Cli, api: Api, background: Host) -> None:  # noqa: F811
    cli.run("apply", "-f", "fleet.dstack.yml", "-y", "-d")

    applied = cli.run("apply", "-f", ".dstack.yml", "-y", "-d")

    assert "hello" in applied
    api.until("hello", "done")
    assert "hello" in cli.run("ps", "-a")
    assert json.loads(cli.run("ps", "-a", "--json"))["runs"][0]["run_spec"]["run_name"] == "hello"
    assert cli.run("logs", "hello").replace("\r", "") == "hello world\n"
    assert json.loads(cli.run("run", "get", "hello", "--json"))["status"] == "done"
    assert "not found" in cli.run("logs", "nobody", code=1).lower()
    events = cli.run("event")
    assert "Run submitted. Status: SUBMITTED" in events
    assert "Job status changed" in cli.run("event", "--within-run", "hello")


def test_a_plan_alone_submits_nothing(cli: Cli, api: Api) -> None:
    cli.run("apply", "-f", "fleet.dstack.yml", "-y", "-d")

    said = cli.run("apply", "-f", ".dstack.yml", given="n\n")

    assert "hello" in said
    assert api.ask("/api/runs/list", {}) == []


def test_a_stop_ends_a_run(cli: Cli, api: Api, background: Host) -> None:  # noqa: F811
    cli.run("apply", "-f", "fleet.dstack.yml", "-y", "-d")
    cli.run("apply", "-f", "long.dstack.yml", "-y", "-d")
    api.until("long", "running")

    cli.run("stop", "long", "-y")

    assert api.until("long", "terminated", "done", "failed")["status"] == "terminated"
    assert "STOPPED_BY_USER" in cli.run("event")


def test_a_service_is_updated_in_place(cli: Cli, api: Api, serving: Host) -> None:  # noqa: F811 - the fixture
    web = cli.home / "web.dstack.yml"
    command = "exec python3 -m http.server $HOST_PORT --bind 127.0.0.1"
    (cli.home / "fleet.dstack.yml").write_text(FLEET.replace("0..1", "0..2"))
    web.write_text(WEB.format(command=command, word="one"))
    cli.run("apply", "-f", "fleet.dstack.yml", "-y", "-d")
    cli.run("apply", "-f", "web.dstack.yml", "-y", "-d")
    ready = "Service replica ready to receive requests"
    until(lambda: ready in api.events(), seconds=30, what="the first replica")
    before = api.get("web")

    web.write_text(WEB.format(command=command, word="two"))
    said = cli.run("apply", "-f", "web.dstack.yml", "-y", "-d")

    assert "can be updated in-place" in said
    assert "Run web updated, detaching..." in said
    until(lambda: api.events().count(ready) == 2, seconds=30, what="the second replica")
    run = api.get("web")
    assert (run["id"], run["deployment_num"]) == (before["id"], 1)
    assert "deployment=1" in cli.run("ps", "-v")
    web.write_text(WEB.format(command=command, word="two") + "auth: false\n")
    assert "cannot be updated in-place" in cli.run("apply", "-f", "web.dstack.yml", given="n\n")
