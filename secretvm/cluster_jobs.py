"""The jobs of clusters: each step is derived from rows, and may be done again.

Source: secretvm.md section 6; how a node is told from a well one is in secretvm/front.py.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from core import faults
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
from secretvm.balancer import Balancer, missing
from secretvm.cluster_nodes import Nodes
from secretvm.cluster_records import ADD, CREATE, REMOVE, UPDATE
from secretvm.front import Front, Server, Traffic
from secretvm.jobs import Work, kind

# How long a guest may take until it is well (secretvm.md section 3, skip_attest).
HEALTHY_S = 600.0
# How long those who stick to a node, and then requests under way, may keep it from being changed.
DRAIN_S = 5.0
FINISH_S = 30.0
# How long the balancer may take to see that a node is well again.
SEEN_S = 60.0
LOOK_S = 0.1


def nodes_of(work: Work) -> Nodes:
    """The nodes for a job."""
    return Nodes(tasks.secret_vms(work))


@kind(CREATE)
def create(work: Work) -> dict[str, Any]:
    """Makes all nodes of a new cluster, and lets traffic to each as soon as it is well."""
    nodes, cluster_id = nodes_of(work), str(work.argument["cluster_id"])
    try:
        found = nodes.of(cluster_id)
        vm_ids = [nodes.make(cluster_id, node.id) for node in found]
        for done, node in enumerate(found, 1):
            work.progress(10 + 80 * done // (len(found) + 1))
            admit(nodes, cluster_id, node.id)
    except NotFound:
        raise
    except CasemateError as error:
        nodes.note_error(cluster_id, error.message)
        raise
    nodes.note_error(cluster_id, "")
    return {"clusterId": cluster_id, "vmIds": vm_ids}


@kind(ADD)
def add(work: Work) -> dict[str, Any]:
    """Makes one more node."""
    nodes, cluster_id = nodes_of(work), str(work.argument["cluster_id"])
    node_id = int(work.argument["node_id"])
    vm_id = nodes.make(cluster_id, node_id)
    work.progress(30)
    admit(nodes, cluster_id, node_id)
    nodes.note_error(cluster_id, "")
    return {"vmId": vm_id}


@kind(REMOVE)
def remove(work: Work) -> dict[str, Any]:
    """Drains a node and removes its VM."""
    nodes, cluster_id = nodes_of(work), str(work.argument["cluster_id"])
    try:
        node = nodes.node(cluster_id, int(work.argument["node_id"]))
    except NotFound:  # an interrupted try has removed it, or all the cluster
        return {"vmId": None}
    nodes.balancer.settle()
    _await_idle(nodes, cluster_id, node, DRAIN_S)
    faults.point("cluster.left")
    with contextlib.suppress(NotFound):
        work.vms.remove(str(node.vm_id))
    nodes.balancer.settle()
    return {"vmId": node.vm_id}


@kind(UPDATE)
def update(work: Work) -> dict[str, Any]:
    """Changes node by node to a plan: no traffic, the new plan, well again, traffic; ends at the first failure."""
    nodes, cluster_id = nodes_of(work), str(work.argument["cluster_id"])
    plan_id, done = int(work.argument["plan_id"]), list[str]()
    found = nodes.of(cluster_id)
    for number, node in enumerate(found):
        # A try that was interrupted has done some already.
        if node.plan_id != plan_id:
            try:
                _change(nodes, cluster_id, node, plan_id, work.argument.get("by"))
            except CasemateError as error:
                told = f"{len(done)} of {len(found)} nodes were updated"
                raise type(error)(f"node {node.name}: {error.message} ({told})") from None
        done.append(str(node.vm_id))
        work.progress(5 + 90 * (number + 1) // len(found))
    return {"updated": done}


def _change(nodes: Nodes, cluster_id: str, node: ClusterNode, plan_id: int, by: str | None) -> None:
    nodes.direct(node.id, Traffic.DRAIN)
    _await_idle(nodes, cluster_id, node, DRAIN_S)
    nodes.direct(node.id, Traffic.CLOSED)
    _await_idle(nodes, cluster_id, node, FINISH_S)
    vm_id = str(node.vm_id)
    was_up = nodes.svms.row(vm_id).word in ("running", "starting")
    nodes.change(cluster_id, node.id, plan_id, by)
    faults.point("cluster.changed")
    if was_up:
        tasks.stopped(nodes.svms, vm_id)
        faults.point("cluster.stopped")
    nodes.svms.vms.start(vm_id)
    admit(nodes, cluster_id, node.id)
    nodes.note_plan(node.id, plan_id)


def admit(nodes: Nodes, cluster_id: str, node_id: int) -> None:
    """Lets traffic to a node once its guest has given a quote and is well, or with skip_attest once it runs."""
    node = nodes.node(cluster_id, node_id)
    tasks.quoted(nodes.svms, str(node.vm_id))
    if nodes.skips_attestation(node):
        nodes.direct(node.id, Traffic.OPEN)
        return
    _await(
        lambda: is_well(nodes.front(cluster_id), _server(nodes, cluster_id, node)),
        HEALTHY_S,
        f"node {node.name} is not well: its health check does not succeed",
    )
    nodes.direct(node.id, Traffic.OPEN)
    if not missing():
        _await(
            lambda: _row(nodes.balancer, cluster_id, node).get("status", "").startswith("UP"),
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


def _server(nodes: Nodes, cluster_id: str, node: ClusterNode) -> Server:
    for server in nodes.front(cluster_id).servers:
        if server.slot == node.slot:
            return server
    raise Invalid(f"node {node.name} has no host ports; it cannot be reached")


def _row(balancer: Balancer, cluster_id: str, node: ClusterNode) -> dict[str, str]:
    with contextlib.suppress(Unavailable):
        return balancer.stat(cluster_id).get(f"n{node.slot}", {})
    return {}


def _await_idle(nodes: Nodes, cluster_id: str, node: ClusterNode, patience_s: float) -> None:
    """Waits until no request is at a node, or for so long; without a balancer there is none."""
    with contextlib.suppress(UpstreamTimeout):
        _await(
            lambda: int(_row(nodes.balancer, cluster_id, node).get("scur") or 0) == 0,
            patience_s,
            "",
        )


def _await(condition: Callable[[], bool], patience_s: float, otherwise: str) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        if time.monotonic() > deadline:
            raise UpstreamTimeout(otherwise)
        time.sleep(LOOK_S)
