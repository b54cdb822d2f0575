"""A host of runs for the command line's tests: the application behind a real port, jobs that are local processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import yaml
from click.testing import CliRunner, Result

from cli.main import casemate
from tests.api.runs.conftest import Host
from tests.common.waiting import until

# Any size fits these.
SMALL = {"cpu": "1..", "memory": "1GB.."}


@dataclass
class Site:
    """A server of runs, and the home and working directory of somebody who uses it."""

    url: str
    token: str
    home: Path
    host: Host
    started: list[subprocess.Popen[str]] = field(default_factory=list)

    def run(self, *words: object, input: str = "", code: int = 0) -> Result:
        """Runs a command line; refusals come as the exceptions that they are."""
        # Not standalone, as the console script: codes are what a command returns.
        given = [str(each) for each in words]
        done = CliRunner().invoke(casemate, given, input=input, standalone_mode=False)
        ended = done.return_value if isinstance(done.return_value, int) else done.exit_code
        if done.exception is not None and not (code and isinstance(done.exception, click.Abort)):
            raise done.exception
        assert ended == code, done.output
        return done

    def json(self, *words: object) -> Any:
        """What a command prints as JSON."""
        return json.loads(self.run(*words, "--json").stdout)

    def start(self, *words: object) -> subprocess.Popen[str]:
        """Starts a command line as a program of its own."""
        started = subprocess.Popen(
            [sys.executable, "-m", "cli.main", *(str(each) for each in words)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **os.environ,
                "PYTHONPATH": str(Path(__file__).parents[2]),
                "PYTHONUNBUFFERED": "1",
            },
        )
        self.started.append(started)
        return started

    def file(self, configuration: dict[str, Any], name: str = ".dstack.yml") -> Path:
        """Writes a configuration into the working directory."""
        path = self.home / name
        path.write_text(yaml.safe_dump(configuration))
        return path

    def task(self, name: str, *commands: str, **more: Any) -> Path:
        """Writes the configuration of a task that any size fits."""
        wanted = {"type": "task", "name": name, "commands": list(commands), "resources": SMALL}
        return self.file({**wanted, **more}, f"{name}.dstack.yml")

    def fleet(self, name: str = "default", nodes: Any = "0..1", **more: Any) -> None:
        """Makes a fleet whose instances any size fits."""
        wanted = {"type": "fleet", "name": name, "nodes": nodes, "resources": {**SMALL, "gpu": 0}}
        self.run("apply", "-y", "-d", "-f", self.file({**wanted, **more}, "fleet.dstack.yml"))

    def submit(self, name: str, *commands: str, **more: Any) -> None:
        """Submits a task without attaching."""
        self.run("apply", "-y", "-d", "-f", self.task(name, *commands, **more))

    def until(self, name: str, *statuses: str) -> Any:
        """A run as soon as it has one of some states."""

        def found() -> Any:
            told = self.json("run", "get", name)
            return told if told["status"] in statuses else None

        return until(found, seconds=30, what=f"{name} being {statuses}")
