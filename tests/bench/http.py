"""P5: how many calls a second the service answers, beside Flask hello on the same gunicorn."""

from __future__ import annotations

import http.client
import json
import re
import shutil
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from tests.bench.context import Bench
from tests.bench.peers import Hello
from tests.bench.report import Line, Promise
from tests.bench.vms import COMPOSE
from tests.common.service import RunningService

METHODS = ("GetInfo", "Version", "ListImages", "GetMeta")
CONNECTIONS = 8
ROUND_S = 1
# Workers get new connections unevenly, at worst all eight fall on one: a round is the mean of two lots.
LOTS = 2


def measure(bench: Bench) -> Iterator[Line]:
    """Two seconds of each in turn, `rounds` times, after a second to warm up."""
    images, image = bench.idle_image
    service = RunningService(bench.scratch / "http", images)
    hello = Hello()
    try:
        service.start()
        hello.start()
        made = service.call(
            "prpc/CreateVm",
            name="bench",
            image=image,
            compose_file=COMPOSE,
            vcpu=1,
            memory=256,
            disk_size=1,
            stopped=True,
        )
        headers = {
            "Authorization": f"Bearer {service.token}",
            "Content-Type": "application/json",
        }
        loads = {"hello": Load(bench.scratch, hello.port, "/")}
        for method in METHODS:
            body = json.dumps({"id": made["id"]} if method == "GetInfo" else {})
            path = f"/prpc/{method}"
            loads[method] = Load(bench.scratch, service.port, path, "POST", headers, body)
        for each in loads.values():
            each.run(ROUND_S)
        rates: dict[str, list[float]] = {name: [] for name in loads}
        for number in range(bench.rounds):
            for name, each in loads.items():
                rates[name].append(statistics.mean(each.run(ROUND_S) for _ in range(LOTS)))
            bench.say(
                f"round {number + 1}: "
                + ", ".join(f"{name} {taken[-1]:,.0f}" for name, taken in rates.items())
                + " per s"
            )
    finally:
        service.end()
        hello.end()
    for method in METHODS:
        yield Line(
            key="P5",
            name=method,
            unit="req/s",
            samples=rates[method],
            promise=Promise(factor=0.5, at_least=True),
            peer="Flask hello",
            peer_samples=rates["hello"],
        )


@dataclass(frozen=True)
class Load:
    """Requests on kept connections of the loopback address: by wrk, or by threads of our own."""

    folder: Path
    port: int
    path: str
    verb: str = "GET"
    headers: dict[str, str] = field(default_factory=dict)
    body: str = ""
    connections: int = CONNECTIONS

    def run(self, duration_s: int) -> float:
        """Answers a second; fails when one is not 200."""
        wrk = shutil.which("wrk")
        return self._wrk(wrk, duration_s) if wrk else self._threads(duration_s)

    def _wrk(self, wrk: str, duration_s: int) -> float:
        # The token goes by a file, not by the command line, which all users can read.
        script = self.folder / f"wrk-{self.port}-{self.path.replace('/', '_')}.lua"
        lines = [f"wrk.method = {json.dumps(self.verb)}", f"wrk.body = {json.dumps(self.body)}"]
        lines += [
            f"wrk.headers[{json.dumps(key)}] = {json.dumps(value)}"
            for key, value in self.headers.items()
        ]
        script.write_text("\n".join(lines))
        done = subprocess.run(
            [
                *(wrk, "-t1", f"-c{self.connections}", f"-d{duration_s}s", "-s", script),
                f"http://127.0.0.1:{self.port}{self.path}",
            ],
            capture_output=True,
            text=True,
            timeout=duration_s + 30,
            check=True,
        )
        assert "Non-2xx" not in done.stdout and "Socket errors" not in done.stdout, done.stdout
        found = re.search(r"Requests/sec:\s*([\d.]+)", done.stdout)
        assert found, done.stdout
        return float(found[1])

    def _threads(self, duration_s: int) -> float:
        counts = [0] * self.connections
        deadline = time.monotonic() + duration_s
        threads = [
            threading.Thread(target=self._one, args=(counts, index, deadline))
            for index in range(self.connections)
        ]
        began = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert all(counts), "a connection got no good answer"
        return sum(counts) / (time.monotonic() - began)

    def _one(self, counts: list[int], index: int, deadline: float) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        done = 0
        while time.monotonic() < deadline:
            connection.request(self.verb, self.path, self.body or None, self.headers)
            answer = connection.getresponse()
            answer.read()
            if answer.status != 200:
                return  # the count stays 0, which the caller refuses
            done += 1
        counts[index] = done
        connection.close()
