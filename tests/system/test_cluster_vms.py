"""A cluster of two real VMs behind a real HAProxy: it serves all through a rolling update, and then goes away."""

from __future__ import annotations

import base64
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from image import hello
from tests.common.backends import Client
from tests.common.service import RunningService
from tests.common.waiting import until

pytestmark = [
    pytest.mark.skipif(
        shutil.which("haproxy") is None, reason="haproxy is not installed: apt-get install haproxy"
    ),
    pytest.mark.timeout(1800),  # four boots, maybe after the image was built
]

# Two boots at once under emulation, on a machine that does other things too.
BOOT_S = 400.0
COMPOSE = hello.compose_text()
CHANGED = COMPOSE + "    labels:\n      release: second\n"


@pytest.fixture
def service(image_dir: tuple[Path, str]) -> Iterator[RunningService]:
    data_dir = Path(f"/tmp/cm-{os.getpid()}-cluster")
    sizes = '[secretvm]\nvm_types = [{id = "tiny", cpu = 1, ram = 1, disk = 2}]'
    running = RunningService(data_dir, image_dir[0], top=sizes)
    running.start()
    yield running
    running.end()


def finished(service: RunningService, job_id: str) -> dict[str, Any]:
    """A job that succeeded."""

    def ended() -> dict[str, Any] | None:
        job: dict[str, Any] = service.request("GET", f"/api/background-job/{job_id}").json()
        return job if job["status"] in ("completed", "failed") else None

    job = until(ended, seconds=BOOT_S, what="the job")
    assert job is not None and job["status"] == "completed", (job, service.log.read_text()[-3000:])
    return job


def test_two_vms_serve_without_a_failed_request_through_a_rolling_update(
    service: RunningService,
) -> None:
    form = {
        "clusterName": "cluster1",
        "vmTypeId": "tiny",
        "vmCount": "2",
        "strategy": "roundrobin",
        # The app itself is what has to be well, not only its guest.
        "backendScheme": "http",
        "backendPort": "80",
        "healthCheckScheme": "http",
        "healthCheckPort": "80",
        "healthCheckPath": "/",
    }
    answer = service.request(
        "POST",
        "/api/cluster/create-background",
        data=form,
        files={"dockercompose": ("compose.yml", COMPOSE)},
    )
    assert answer.status_code == 200, answer.text
    cluster_id = finished(service, answer.json()["jobId"])["result"]["clusterId"]
    path = f"/api/cluster/{cluster_id}"
    cluster = service.request("GET", path).json()
    assert (cluster["status"], cluster["loadBalancer"]["healthy"]) == ("running", 2), cluster

    client, stop = Client(int(cluster["url"].rpartition(":")[2])), threading.Event()

    def load() -> None:
        while not stop.wait(0.2):
            client.ask()

    asking = threading.Thread(target=load)
    asking.start()
    began = time.monotonic()
    update = {"dockerComposeBase64": _base64(CHANGED)}
    queued = service.request("POST", f"{path}/update-vms-background", json=update).json()
    job = finished(service, queued["jobId"])
    took_s = time.monotonic() - began
    stop.set()
    asking.join()

    assert job["result"]["updated"] == [vm["id"] for vm in cluster["vms"]]
    assert (client.failed, set(client.statuses)) == ([], {200})
    assert client.statuses[200] > 20
    after = service.request("GET", path).json()
    assert {vm["docker_file"] for vm in after["vms"]} == {CHANGED}
    assert after["status"] == "running"
    traffic = until(lambda: _counted(service, path, client.statuses[200]), what="the count")
    print(f"{client.statuses[200]} requests in an update of {took_s:.0f} s", traffic)

    haproxy = _haproxy(service)
    assert service.request("DELETE", path).json() == {"deleted": True, "id": cluster_id}
    assert service.request("GET", path).status_code == 404
    until(lambda: not service.qemus(), seconds=60, what="the end of the VMs")
    until(lambda: not haproxy.is_running(), what="the end of HAProxy")


def _counted(service: RunningService, path: str, requests: int) -> dict[str, Any] | None:
    told: dict[str, Any] = service.request("GET", f"{path}/traffic").json()
    return told if told["status_codes"] == {"200": requests} else None


def _haproxy(service: RunningService) -> psutil.Process:
    record = json.loads((service.data_dir / "balancer/process.json").read_text())
    return psutil.Process(record["pid"])


def _base64(text: str) -> str:
    return base64.b64encode(text.encode()).decode()
