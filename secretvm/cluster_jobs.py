"""The jobs of clusters and their looking after: each step is derived from rows, and may be done again.

Source: secretvm.md section 6; how a node is told from a well one is in secretvm/front.py.
"""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from core.errors import (
    CasemateError,
    Invalid,
    NotFound,
    Unavailable,
    Upstream,
    UpstreamTimeout,
)
from core.http import Peer
from models.cluster import ClusterNode
from secretvm import tasks
from secretvm.balancer import STOP_S, Balancer, missing
from secretvm.clusters import ADD, CREATE, REMOVE, UPDATE, Clusters
from secretvm.front import Front, Server, Traffic
from secretvm.jobs import Work, kind

logger = logging.getLogger(__name__)

# How long a guest may take until it is well (secretvm.md section 3, skip_attest).
HEALTHY_S = 600.0
# How long those who stick to a node, and then requests under way, may keep it from being changed.
DRAIN_S = 5.0
FINISH_S = 30.0
# How long the balancer may take to see that a node is well again.
SEEN_S = 60.0
LOOK_S = 0.1
# How often clusters are looked after.
TEND_S = 2.0


def clusters_of(work: Work) -> Clusters:
    """The verbs for a job."""
    return Clusters(tasks.secret_vms(work))


@kind(CREATE)
def create(work: Work) -> dict[str, Any]:
    """Makes all nodes of a new cluster, and lets traffic to each as soon as it is well."""
    clusters, cluster_id = clusters_of(work), str(work.argument["cluster_id"])
    try:
        nodes = clusters.nodes(cluster_id)
        vm_ids = [clusters.make(cluster_id, node.id) for node in nodes]
        for done, node in enumerate(nodes, 1):
            work.progress(10 + 80 * done // (len(nodes) + 1))
            admit(clusters, cluster_id, node.id)
    except NotFound:
        raise
    except CasemateError as error:
        clusters.note_error(cluster_id, error.message)
        raise
    clusters.note_error(cluster_id, "")
    return {"clusterId": cluster_id, "vmIds": vm_ids}


@kind(ADD)
def add(work: Work) -> dict[str, Any]:
    """Makes one more node."""
    clusters, cluster_id = clusters_of(work), str(work.argument["cluster_id"])
    node_id = int(work.argument["node_id"])
    vm_id = clusters.make(cluster_id, node_id)
    work.progress(30)
    admit(clusters, cluster_id, node_id)
    clusters.note_error(cluster_id, "")
    return {"vmId": vm_id}


@kind(REMOVE)
def remove(work: Work) -> dict[str, Any]:
    """Drains a node and removes its VM."""
    clusters, cluster_id = clusters_of(work), str(work.argument["cluster_id"])
    try:
        node = clusters.node(cluster_id, int(work.argument["node_id"]))
    except NotFound:  # an interrupted try has removed it, or all the cluster
        return {"vmId": None}
    clusters.balancer.settle()
    _await_idle(clusters, cluster_id, node, DRAIN_S)
    with contextlib.suppress(NotFound):
        work.vms.remove(str(node.vm_id))
    clusters.balancer.settle()
    return {"vmId": node.vm_id}


@kind(UPDATE)
def update(work: Work) -> dict[str, Any]:
    """Changes node by node to a plan: no traffic, the new plan, well again, traffic; ends at the first failure."""
    clusters, cluster_id = clusters_of(work), str(work.argument["cluster_id"])
    plan_id, done = int(work.argument["plan_id"]), list[str]()
    nodes = clusters.nodes(cluster_id)
    for number, node in enumerate(nodes):
        # A try that was interrupted has done some already.
        if node.plan_id != plan_id:
            try:
                _change(clusters, cluster_id, node, plan_id)
            except CasemateError as error:
                told = f"{len(done)} of {len(nodes)} nodes were updated"
                raise type(error)(f"node {node.name}: {error.message} ({told})") from None
        done.append(str(node.vm_id))
        work.progress(5 + 90 * (number + 1) // len(nodes))
    return {"updated": done}


def _change(clusters: Clusters, cluster_id: str, node: ClusterNode, plan_id: int) -> None:
    clusters.direct(node.id, Traffic.DRAIN)
    _await_idle(clusters, cluster_id, node, DRAIN_S)
    clusters.direct(node.id, Traffic.CLOSED)
    _await_idle(clusters, cluster_id, node, FINISH_S)
    vm_id = str(node.vm_id)
    was_up = clusters.svms.row(vm_id).word in ("running", "starting")
    clusters.change(cluster_id, node.id, plan_id)
    if was_up:
        tasks.stopped(clusters.svms, vm_id)
    clusters.svms.vms.start(vm_id)
    admit(clusters, cluster_id, node.id)
    clusters.note_plan(node.id, plan_id)


def admit(clusters: Clusters, cluster_id: str, node_id: int) -> None:
    """Lets traffic to a node once its guest has given a quote and is well, or with skip_attest once it runs."""
    node = clusters.node(cluster_id, node_id)
    tasks.quoted(clusters.svms, str(node.vm_id))
    if clusters.skips_attestation(node):
        clusters.direct(node.id, Traffic.OPEN)
        return
    _await(
        lambda: is_well(clusters.front(cluster_id), _server(clusters, cluster_id, node)),
        HEALTHY_S,
        f"node {node.name} is not well: its health check does not succeed",
    )
    clusters.direct(node.id, Traffic.OPEN)
    if not missing():
        _await(
            lambda: _row(clusters.balancer, cluster_id, node).get("status", "").startswith("UP"),
            SEEN_S,
            f"the balancer does not see that node {node.name} is well",
        )


def is_well(front: Front, server: Server) -> bool:
    """Whether a node answers its health check as the balancer wants it."""
    health = front.health
    host = f"[{server.address}]" if ":" in server.address else server.address
    url = f"{health.scheme}://{host}:{server.check_port}{health.path}"
    try:
        # Its certificate is of its own making; what that proves, its quote says.
        answer = Peer(url, check_certificate=False).ask("GET", within_s=health.timeout_s)
    except (Upstream, UpstreamTimeout):
        return False
    return 200 <= answer.status < 400


def _server(clusters: Clusters, cluster_id: str, node: ClusterNode) -> Server:
    for server in clusters.front(cluster_id).servers:
        if server.slot == node.slot:
            return server
    raise Invalid(f"node {node.name} has no host ports; it cannot be reached")


def _row(balancer: Balancer, cluster_id: str, node: ClusterNode) -> dict[str, str]:
    with contextlib.suppress(Unavailable):
        return balancer.stat(cluster_id).get(f"n{node.slot}", {})
    return {}


def _await_idle(clusters: Clusters, cluster_id: str, node: ClusterNode, patience_s: float) -> None:
    """Waits until no request is at a node, or for so long; without a balancer there is none."""
    with contextlib.suppress(UpstreamTimeout):
        _await(
            lambda: int(_row(clusters.balancer, cluster_id, node).get("scur") or 0) == 0,
            patience_s,
            "",
        )


def _await(condition: Callable[[], bool], patience_s: float, otherwise: str) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise UpstreamTimeout(otherwise)
        time.sleep(LOOK_S)


@dataclass
class Tender:
    """What the background process runs: finishes what a killed process or a failed job has left of clusters."""

    clusters: Clusters
    stopping: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins to look."""
        self.thread = threading.Thread(target=self._watch, name="clusters", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Ends the looking."""
        self.stopping.set()
        if self.thread is not None:
            self.thread.join(STOP_S)

    def _watch(self) -> None:
        while not self.stopping.wait(TEND_S):
            try:
                self.clusters.tend()
            except CasemateError as error:
                logger.warning("clusters: %s", error.message)
            except Exception:  # a full disk passes, and the watch must go on
                logger.exception("clusters could not be looked after")
