"""kill -9 at every named point of a cluster's life: what the next service makes of it (core/faults.py)."""

from __future__ import annotations

import base64
import shutil
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from tests.common import rows
from tests.common.backends import Client
from tests.common.service import RunningService
from tests.common.waiting import until

pytestmark = pytest.mark.skipif(
    shutil.which("haproxy") is None, reason="haproxy is not installed: apt-get install haproxy"
)

COMPOSE = "services:\n  web:\n    image: hello:1\n    ports: ['8080:80']\n"
CHANGED = COMPOSE.replace("hello:1", "hello:2")


@dataclass
class Site:
    """A service whose VMs are played, with one cluster that no case is about."""

    service: RunningService
    bystander: int = 0

    def ask(self, method: str, path: str, **kwargs: Any) -> Any:
        """A call that must succeed."""
        answer = self.service.request(method, f"/api{path}", **kwargs)
        assert answer.status_code == 200, (path, answer.text)
        return answer.json()

    def create(self, name: str, nodes: int) -> Any:
        """Asks for a cluster."""
        health = {"healthCheckScheme": "http", "healthCheckInterval": "1"}
        form = {"clusterName": name, "vmTypeId": "small", "vmCount": str(nodes), **health}
        form |= {"backendScheme": "http", "backendPort": "80"}
        files = {"dockercompose": ("compose.yml", COMPOSE)}
        return self.ask("POST", "/cluster/create-background", data=form, files=files)

    def cluster(self, name: str) -> dict[str, Any] | None:
        """A cluster with its VMs, if it is there."""
        listed = self.ask("GET", "/cluster")
        found = next((each["id"] for each in listed if each["name"] == name), None)
        return self.ask("GET", f"/cluster/{found}") if found else None

    def vms(self) -> set[str]:
        """All VMs but the bystander's."""
        return {vm["id"] for vm in self.ask("GET", "/vm/instances") if vm["clusterName"] != "other"}

    def serves(self, nodes: int, text: str = COMPOSE) -> bool:
        """Whether the cluster runs, of these VMs and no other, and all of them answer through its front."""
        shop = self.cluster("shop")
        if shop is None or shop["status"] != "running" or not shop["loadBalancer"]:
            return False
        ids = {vm["id"] for vm in shop["vms"]}
        texts = {vm["docker_file"] for vm in shop["vms"]}
        balancer = shop["loadBalancer"]
        if (len(ids), balancer["healthy"], texts, self.vms()) != (nodes, nodes, {text}, ids):
            return False
        client = Client(int(balancer["listen"].rpartition(":")[2])).ask_often(2 * nodes)
        return set(client.names) == ids and not client.failed

    def made(self, name: str, nodes: int) -> dict[str, Any]:
        """A cluster whose job is done."""
        job = self.create(name, nodes)["jobId"]
        self.finished(job)
        found = self.cluster(name)
        assert found is not None
        return found

    def finished(self, job_id: str) -> None:
        """Waits until a job has succeeded."""

        def job() -> Any:
            told = self.ask("GET", f"/background-job/{job_id}")
            return told if told["status"] in ("completed", "failed") else None

        told = until(job, seconds=120, what="the job")
        assert told["status"] == "completed", told

    def empty(self) -> None:
        """Takes the case's cluster away."""
        if shop := self.cluster("shop"):
            self.ask("DELETE", f"/cluster/{shop['id']}")
        until(lambda: not self.vms(), seconds=60, what="the end of the VMs")


def create(site: Site) -> str:
    job_id: str = site.create("shop", 2)["jobId"]
    return job_id


def update(site: Site) -> str:
    shop = site.cluster("shop")
    assert shop is not None
    body = {"dockerComposeBase64": base64.b64encode(CHANGED.encode()).decode()}
    path = f"/cluster/{shop['id']}/update-vms-background"
    job_id: str = site.ask("POST", path, json=body)["jobId"]
    return job_id


def remove(site: Site) -> str:
    shop = site.cluster("shop")
    assert shop is not None
    site.ask("DELETE", f"/cluster/{shop['id']}/vms/{shop['vms'][0]['id']}")
    return ""


def delete(site: Site) -> str:
    shop = site.cluster("shop")
    assert shop is not None
    with pytest.raises(requests.ConnectionError):
        site.ask("DELETE", f"/cluster/{shop['id']}")
    return ""


@dataclass(frozen=True)
class Operation:
    """A call on a cluster of so many nodes, the job's id if it tells one, and what must come of it."""

    nodes: int
    call: Callable[[Site], str]
    points: tuple[str, ...]
    holds: Callable[[Site], bool]


OPERATIONS = {
    "create": Operation(
        0,
        create,
        ("cluster.made:1", "cluster.made:2", "cluster.directed:1"),
        lambda site: site.serves(2),
    ),
    # Each node drains, is closed and is opened again.
    "update": Operation(
        2,
        update,
        (
            "cluster.directed:1",
            "cluster.directed:2",
            "cluster.changed:1",
            "cluster.stopped:1",
            "cluster.directed:3",
        ),
        lambda site: site.serves(2, CHANGED),
    ),
    "remove": Operation(2, remove, ("cluster.left",), lambda site: site.serves(1)),
    "delete": Operation(
        2, delete, ("cluster.removed",), lambda site: not site.cluster("shop") and not site.vms()
    ),
}
CASES = [(name, point) for name, operation in OPERATIONS.items() for point in operation.points]


@pytest.fixture(scope="module")
def site(fake_qemu: Path) -> Iterator[Site]:
    """One service for the whole walk: each case begins with the one that recovered from the case before."""
    folder = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp"))
    rows.image(folder / "images")
    data_dir = folder / "data"
    rows.behave(data_dir / "vm", http=0.1, guest={"Quote": {"result": {"text": "00"}}})
    service = RunningService(
        data_dir,
        folder / "images",
        extra=f'qemu_path = "{fake_qemu}"\naccel = "tcg"\n[server]\nworkers = 1\nthreads = 8\n',
    )
    service.start()
    site = Site(service)
    other = site.made("other", 1)
    site.bystander = int(other["loadBalancer"]["listen"].rpartition(":")[2])
    yield site
    service.end()
    shutil.rmtree(folder)


@pytest.mark.parametrize(("name", "point"), CASES)
def test_a_cluster_comes_out_right_when_the_service_is_killed(
    site: Site, name: str, point: str
) -> None:
    operation, service = OPERATIONS[name], site.service
    if service.process is None or service.process.poll() is not None:  # the case before has failed
        service.start()
    site.empty()
    if operation.nodes:
        site.made("shop", operation.nodes)
    service.kill(everything=False)
    service.log.write_bytes(b"")
    service.start(CASEMATE_FAULT=point, CASEMATE_FAULTS_ALLOWED="1")

    job_id = operation.call(site)
    mark = f"fault point {point.partition(':')[0]}\n"
    until(lambda: mark in service.log.read_text(), seconds=60, what=f"a pass of {point}")
    service.kill(everything=False)
    service.start()

    if job_id:
        site.finished(job_id)
    until(lambda: operation.holds(site), seconds=120, what="what was asked for")
    bystander = Client(site.bystander).ask_often(3)
    assert (bystander.failed, set(bystander.statuses), len(bystander.names)) == ([], {200}, 1)
