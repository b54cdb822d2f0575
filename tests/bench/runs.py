"""P15: how many calls of the runs interface are answered a second, beside the server that it comes from."""

from __future__ import annotations

import contextlib
import functools
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from core import files
from core.config import cache_dir
from tests.bench.context import Bench
from tests.bench.http import CONNECTIONS, ROUND_S, Load
from tests.bench.report import Line, Promise
from tests.common.service import RunningService
from tests.common.waiting import free_port, until

PEER = "dstack[server]==0.22.5"
COUNTS = (0, 100, 1000)
# Where no fleet is, a run of either server is over by itself.
TASK = {"type": "task", "commands": ["true"]}
CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "users/get_my_user": ("/api/users/get_my_user", {}),
    "fleets/list": ("/api/project/main/fleets/list", {"include_imported": True}),
    "runs/list": ("/api/runs/list", {"project_name": "main", "limit": 100}),
    "runs/get_plan": (
        "/api/project/main/runs/get_plan",
        {"run_spec": {"run_name": "planned", "configuration": TASK}},
    ),
}
# The peer takes its time.
OVER_S = 120
Key = tuple[int, str, int]
Rates = dict[str, dict[Key, list[float]]]


@dataclass
class Server:
    """One of the two: where it answers, its database, and the column of its runs' names there."""

    port: int
    token: str
    database: Path
    column: str
    jobs: str
    given: int = 0

    def ask(self, path: str, body: Any) -> Any:
        """A call that must succeed."""
        url = f"http://127.0.0.1:{self.port}{path}"
        headers = {"Authorization": f"Bearer {self.token}"}
        answer = requests.post(url, json=body, headers=headers, timeout=60)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def fill(self, count: int) -> None:
        """Submits a run, waits until it is over, and copies its rows until there are so many."""
        if count and not self.given:
            spec = {"run_name": "first", "configuration": TASK}
            plan = {"run_spec": spec, "current_resource": None}
            self.ask("/api/project/main/runs/apply", {"plan": plan, "force": False})
            until(self._is_over, seconds=OVER_S, what="the run's end")
            self.given = 1
        if count > self.given:
            with contextlib.closing(sqlite3.connect(self.database, timeout=30)) as copy, copy:
                for number in range(self.given, count):
                    self._copy(copy, number)
            self.given = count
        asked = {"project_name": "main", "limit": 100}
        assert len(self.ask("/api/runs/list", asked)) == min(count, 100)

    def _is_over(self) -> bool:
        asked = {"project_name": "main", "only_active": True, "limit": 1}
        return self.ask("/api/runs/list", asked) == []

    def _copy(self, database: sqlite3.Connection, number: int) -> None:
        database.row_factory = sqlite3.Row
        run = dict(database.execute("SELECT * FROM runs LIMIT 1").fetchone())
        job = dict(database.execute(f"SELECT * FROM {self.jobs} LIMIT 1").fetchone())
        fresh = [str(uuid.uuid4()) for _ in range(2)]
        if len(run["id"]) == 32:
            fresh = [each.replace("-", "") for each in fresh]
        run |= {"id": fresh[0], self.column: f"run-{number}"}
        job |= {"id": fresh[1], "run_id": fresh[0]}
        for table, row in (("runs", run), (self.jobs, job)):
            marks = ", ".join("?" * len(row))
            names = ", ".join(row)
            database.execute(f"INSERT INTO {table} ({names}) VALUES ({marks})", list(row.values()))


@dataclass
class Peer:
    """dstack's own server, in an environment and a home of its own."""

    folder: Path
    process: subprocess.Popen[bytes] | None = None

    @functools.cached_property
    def server(self) -> Server:
        """What is asked."""
        database = self.folder / ".dstack/server/data/sqlite.db"
        return Server(free_port(), "bench-peer-token", database, "run_name", "jobs")

    def start(self) -> None:
        """Starts it; raises when it cannot be installed or does not answer."""
        python = _installed()
        self.folder.mkdir()
        env = {"HOME": str(self.folder), "PATH": os.environ["PATH"]}
        # Not on the command line, which all users can read.
        env["DSTACK_SERVER_ADMIN_TOKEN"] = self.server.token
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [python.parent / "dstack", "server", "-n", "--port", str(self.server.port)],
                env=env,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        until(self._answers, seconds=120, what=f"the peer's start (log: {self.folder / 'log'})")

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, "the peer ended at once"
        try:
            self.server.ask("/api/project/main/fleets/list", {})
        except requests.ConnectionError:
            return False
        return True

    def end(self) -> None:
        """Ends it with all that it started."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()


def _installed() -> Path:
    """The interpreter of a virtual environment that has the peer, made once in the cache."""
    folder = cache_dir() / "peers" / "dstackai-server-0.22.5"
    folder.parent.mkdir(parents=True, exist_ok=True)
    ready = folder / "ready"
    with files.locked(folder.parent / ".dstackai-server.lock", timeout_s=900):
        if not ready.exists():
            shutil.rmtree(folder, ignore_errors=True)
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            pip = [folder / "bin/pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, PEER], check=True, capture_output=True)
            ready.touch()
    return folder / "bin/python"


def measure(bench: Bench) -> Iterator[Line]:
    """A second of each call on one and on eight connections, `rounds` times, with more and more runs."""
    images, _ = bench.idle_image
    service, peer = RunningService(bench.scratch / "runs", images), Peer(bench.scratch / "peer")
    trouble = ""
    try:
        service.start()
        servers = {
            "ours": Server(
                service.port, service.token, service.data_dir / "casemate.db", "name", "run_jobs"
            )
        }
        try:
            peer.start()
            servers["peer"] = peer.server
        except (subprocess.SubprocessError, OSError, AssertionError) as error:
            trouble = f"{PEER} could not be run: {type(error).__name__}"
            bench.say(trouble)
        rates: Rates = {name: {} for name in servers}
        for count in COUNTS:
            for server in servers.values():
                server.fill(count)
            for number in range(bench.rounds):
                _round(bench, servers, count, rates)
                bench.say(f"{count:,} runs, round {number + 1}")
    finally:
        service.end()
        peer.end()
    yield from _lines(rates, trouble)


def _round(bench: Bench, servers: dict[str, Server], count: int, rates: Rates) -> None:
    for call, (path, body) in CALLS.items():
        for connections in (1, CONNECTIONS):
            for name, server in servers.items():
                headers = {"Authorization": f"Bearer {server.token}"}
                headers["Content-Type"] = "application/json"
                load = Load(
                    bench.scratch, server.port, path, "POST", headers, json.dumps(body), connections
                )
                taken = rates[name].setdefault((count, call, connections), [])
                taken.append(load.run(ROUND_S))


def _lines(rates: Rates, trouble: str) -> Iterator[Line]:
    for (count, call, connections), samples in rates["ours"].items():
        many = "1 connection" if connections == 1 else f"{connections} connections"
        yield Line(
            key="P15",
            name=f"{call}, {count:,} runs, {many}",
            unit="req/s",
            samples=samples,
            promise=None if trouble else Promise(factor=1, at_least=True),
            peer="" if trouble else PEER,
            peer_samples=() if trouble else rates["peer"][count, call, connections],
            note=trouble,
        )
