"""A service in real VMs is updated while it serves, and the host's own service is killed in the middle of it."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self

import pytest
import requests

from tests.common.service import RunningService
from tests.common.waiting import until
from tests.system.test_runs_vm import BOOT_S, JOB_S, Project

SMALL = {"cpu": "1..", "memory": "1GB..", "gpu": 0}
URL = "/proxy/services/main/site/"
SCRIPT = (
    "mkdir -p /srv/x && cd /srv/x && echo $WORD > index.html && exec python3 -m http.server 8000"
)

pytestmark = pytest.mark.timeout(1800)  # two boots and a restart


@pytest.fixture
def service(image_dir: tuple[Path, str]) -> Iterator[RunningService]:
    running = RunningService(Path(f"/tmp/cm-{os.getpid()}-rolling"), image_dir[0])
    running.start()
    yield running
    running.end()


def spec(word: str) -> dict[str, Any]:
    """A service that says a word once it is found well."""
    configuration = {
        "type": "service",
        "port": 8000,
        "commands": [SCRIPT],
        "env": {"WORD": word},
        "resources": SMALL,
        "probes": [{"type": "http", "url": "/index.html", "interval": 1, "ready_after": 2}],
        "stop_duration": 10,
    }
    return {"run_name": "site", "configuration": configuration}


class Visitor:
    """Somebody who asks a service again and again while there is a host to ask."""

    def __init__(self, service: RunningService) -> None:
        self.service = service
        self.told: list[tuple[int, str]] = []
        self.over = threading.Event()
        self.thread = threading.Thread(target=self._ask)

    def __enter__(self) -> Self:
        self.thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.over.set()
        self.thread.join()

    def _ask(self) -> None:
        while not self.over.wait(0.2):
            try:
                answer = self.service.request("GET", URL)
            except (requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
                continue  # the host's service is down, or went down within its answer
            self.told.append((answer.status_code, answer.text.strip()))


def test_an_update_is_not_noticed_and_outlives_the_service(service: RunningService) -> None:
    project = Project(service)
    fleet = {"type": "fleet", "name": "default", "nodes": "0..2", "resources": SMALL}
    project.call(
        "fleets/apply", plan={"spec": {"configuration": fleet, "profile": {}}}, force=False
    )
    project.call("runs/apply", plan={"run_spec": spec("one")}, force=False)
    project.reach("site", "running", within_s=BOOT_S)
    until(
        lambda: service.request("GET", URL).text.strip() == "one",
        seconds=JOB_S,
        what="the first replica",
    )
    before = project.run("site")

    with Visitor(service) as visitor:
        plan = project.call("runs/get_plan", run_spec=spec("two"))
        update = {"run_spec": spec("two"), "current_resource": plan["current_resource"]}
        project.call("runs/apply", plan=update, force=False)
        until(lambda: _states(project).get(1) == "provisioning", seconds=30, what="a new VM")
        service.kill(everything=True)
        service.start()
        began = time.monotonic()
        until(
            lambda: _states(project) == {0: "terminated", 1: "running"},
            seconds=BOOT_S,
            what="the replacement",
        )
        until(lambda: visitor.told[-1] == (200, "two"), seconds=30, what="the new word")

    assert plan["action"] == "update"
    assert {status for status, _ in visitor.told} == {200}, set(visitor.told)
    assert {word for _, word in visitor.told} == {"one", "two"}
    run = project.run("site")
    assert (run["id"], run["deployment_num"], run["status"]) == (before["id"], 1, "running")
    assert run["jobs"][0]["job_submissions"][-1]["termination_reason"] == "scaled_down"
    assert run["jobs"][1]["job_submissions"][-1]["probes"][0]["success_streak"] >= 2
    print(f"replaced in {time.monotonic() - began:.1f} s")


def _states(project: Project) -> dict[int, str]:
    jobs = project.run("site")["jobs"]
    return {job["job_spec"]["replica_num"]: job["job_submissions"][-1]["status"] for job in jobs}
