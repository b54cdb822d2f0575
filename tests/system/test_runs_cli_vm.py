"""Casemate's own commands for runs against a service with a real VM: attached runs, ports, a shell, how they end.

One service and one VM serve the tests of this file, in order.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import requests

from tests.common.service import RunningService
from tests.common.waiting import free_port, press_ctrl_c, until

BOOT_S = 400.0
JOB_S = 150.0
FLEET = "type: fleet\nname: default\nnodes: 0..1\nidle_duration: 1h\nresources:\n  gpu: 0\n"
HELLO = "type: task\nname: hello\ncommands:\n  - echo hello world\n"


@dataclass
class Shell:
    """The `casemate` program with a home of its own."""

    home: Path

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A command line that was begun."""
        given = {"HOME": str(self.home), "PYTHONPATH": str(Path(__file__).parents[2])}
        return subprocess.Popen(
            [sys.executable, "-m", "cli.main", *words],
            cwd=self.home,
            env={"PATH": os.environ["PATH"], "PYTHONUNBUFFERED": "1", **given},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *words: str, code: int = 0, within_s: float = JOB_S) -> tuple[str, str]:
        """What a command line that must end with a code prints, and what it remarks."""
        with self.start(*words) as process:
            try:
                told = process.communicate(timeout=within_s)
            finally:
                process.kill()
        assert process.returncode == code, told
        assert "Traceback" not in told[1]
        return told

    def file(self, name: str, text: str) -> str:
        """Writes a configuration; its name."""
        (self.home / name).write_text(text)
        return name


@pytest.fixture(scope="module")
def service(image_dir: tuple[Path, str]) -> Iterator[RunningService]:
    running = RunningService(Path(f"/tmp/cm-{os.getpid()}-runscli"), image_dir[0])
    running.start()
    yield running
    running.end()


@pytest.fixture(scope="module")
def shell(service: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Shell:
    """Somebody who knows the service and has a fleet of at most one VM there."""
    shell = Shell(tmp_path_factory.mktemp("home"))
    given = ("--name", "main", "--url", service.base, "--token", service.token)
    shell.run("project", "add", *given, "-y")
    shell.run("apply", "-y", "-f", shell.file("fleet.dstack.yml", FLEET))
    return shell


def test_the_first_task_runs_attached(shell: Shell) -> None:
    told, remarks = shell.run(
        "apply", "-y", "-f", shell.file("hello.dstack.yml", HELLO), within_s=BOOT_S
    )

    assert told.endswith("hello world\n")
    assert "hello: exited (0)" in remarks
    assert "not attached" not in remarks


def test_an_attached_run_has_its_ports_and_ends_with_its_code(shell: Shell) -> None:
    port = free_port()
    text = (
        f'type: task\nname: web\nports: ["{port}:8000"]\ncommands:\n'
        "  - python3 -m http.server 8000 & until test -e /tmp/over; do sleep 0.2; done; exit 7\n"
    )
    with shell.start("apply", "-y", "-f", shell.file("web.dstack.yml", text)) as apply:
        try:
            page = until(lambda: _get(f"http://127.0.0.1:{port}/"), seconds=JOB_S, what="the page")
            config = str(shell.home / ".casemate/ssh/config")
            ssh = ["ssh", "-F", config, "web", "pwd; touch /tmp/over"]
            said = subprocess.run(ssh, capture_output=True, text=True, timeout=JOB_S, check=True)
            told, remarks = apply.communicate(timeout=JOB_S)
        finally:
            apply.kill()

    assert "Directory listing" in page
    assert said.stdout == "/root\n"
    assert (apply.returncode, "web: exited (7)" in remarks) == (7, True)
    assert f"localhost:{port} is port 8000 of the run" in remarks
    assert "GET / HTTP/1.1" in told


def test_a_detached_run_is_attached_to_and_left(shell: Shell) -> None:
    text = (
        "type: task\nname: site\nports: [8000]\ncommands:\n"
        "  - echo begun\n  - python3 -m http.server 8000\n"
    )
    shell.run("apply", "-y", "-d", "-f", shell.file("site.dstack.yml", text))
    port = free_port()
    include = shell.home / ".ssh/config"

    with shell.start("attach", "site", "--logs", "-p", f"{port}:8000") as attach:
        try:
            page = until(lambda: _get(f"http://127.0.0.1:{port}/"), seconds=JOB_S, what="the page")
            # The log has a connection of its own, which may be later than the page.
            with contextlib.ExitStack() as late:
                timer = threading.Timer(JOB_S, attach.kill)
                late.callback(timer.cancel)
                timer.start()
                assert attach.stdout
                assert attach.stdout.readline() == "begun\n"
            assert "Host site\n" in (shell.home / ".casemate/ssh/config").read_text()
            press_ctrl_c(attach)
            told, remarks = attach.communicate(timeout=JOB_S)
        finally:
            attach.kill()

    assert "Directory listing" in page
    assert attach.returncode == 0
    assert "begun" not in told
    assert "To connect to the run: ssh site\n" in remarks
    assert remarks.endswith("Detached\n")
    assert include.read_text() == f'Include "{shell.home}/.casemate/ssh/config"\n'
    assert (shell.home / ".casemate/ssh/config").read_text() == ""
    assert '"running"' in shell.run("run", "get", "site", "--json")[0]


def test_a_stop_is_waited_for(shell: Shell) -> None:
    shell.run("stop", "site", "-y", "--wait")

    assert "stopped" in shell.run("ps", "-n", "1")[0]
    assert "TERMINATED_BY_USER" in shell.run("event", "--within-run", "site")[0]


def _get(url: str) -> str:
    try:
        return requests.get(url, timeout=20).text
    except requests.RequestException:
        return ""
