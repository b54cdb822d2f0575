"""What the cluster calls answer, made of rows and of what the balancer counted (pure).

Source: secretvm.md section 6.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

from models.cluster import Cluster, ClusterNode
from secretvm import document
from secretvm.balancer import Stat
from secretvm.document import Measured
from secretvm.front import NODES_MOST, Front, Server, Strategy
from secretvm.traffic import Totals
from secretvm.vm_object import iso

_STATUSES = ("UP", "DOWN", "MAINT", "DRAIN")


@dataclass(frozen=True)
class Member:
    """A node with the object of its VM, and how the VMM says that VM is."""

    node: ClusterNode
    vm: Mapping[str, Any]
    word: str


@dataclass(frozen=True)
class View:
    """Everything about a cluster that its object shows."""

    cluster: Cluster
    # The document that new nodes are measured with.
    app: Mapping[str, Any]
    members: Sequence[Member]
    # The unfinished job that holds it, by type; "" for none.
    job: str
    front: Front
    # What the balancer says of it, or why it says nothing.
    stat: Stat
    silence: str = ""


@dataclass(frozen=True, eq=False)
class Collected(Collector):
    """Figures that are there already, as a registry takes them."""

    metrics: Sequence[Metric]

    def collect(self) -> Iterator[Metric]:
        """All of them."""
        yield from self.metrics


def cluster_object(view: View) -> dict[str, Any]:
    """The object of a cluster with its VMs."""
    vms = [
        {**member.vm, "weight": member.node.weight, "lbHealth": health(view, member.node)}
        for member in view.members
    ]
    return {**listed(view), "vms": vms}


def listed(view: View) -> dict[str, Any]:
    """The object of a cluster as the list has it."""
    cluster, measured = view.cluster, document.measured_in(view.app) or Measured()
    return {
        "id": cluster.id,
        "clusterName": cluster.name,
        "name": cluster.name,
        "status": status(view),
        "error_message": cluster.error or None,
        "strategy": cluster.strategy,
        "stickySession": cluster.sticky,
        "weights": [node.weight for node in cluster.nodes],
        "hostname": cluster.domain or cluster.address,
        "url": url(cluster),
        "vmTypeId": cluster.vm_type,
        "vmCount": len(view.members),
        "maxVms": NODES_MOST,
        "backendScheme": cluster.backend_scheme,
        "backendPort": cluster.backend_port,
        "healthCheck": {
            "scheme": cluster.health_scheme,
            "path": cluster.health_path,
            "port": cluster.health_port,
            "interval": cluster.health_interval_s,
            "timeout": cluster.health_timeout_s,
        },
        "maxConnections": cluster.max_connections,
        # The front speaks plain HTTP: there is no certificate that could expire.
        "sslExpiry": None,
        "docker_file": document.docker_compose(view.app),
        "upgradeability": measured.upgradeable,
        "loadBalancer": _balancer(view),
        "loadBalancerError": view.silence or None,
        "createdAt": iso(cluster.created_ms),
        "updatedAt": iso(cluster.updated_ms),
    }


def status(view: View) -> str:
    """The status word: what a job does to it comes before how it is."""
    if view.job:
        return "pending" if view.job == "cluster.create" else "updating"
    if view.cluster.error or not view.members:
        return "error"
    down = any(
        member.word != "running" or health(view, member.node) == "unhealthy"
        for member in view.members
    )
    return "degraded" if down else "running"


def health(view: View, node: ClusterNode) -> str:
    """What the balancer thinks of a node: healthy, unhealthy or unknown."""
    row = view.stat.get(_server_of(view.front, node).name, {})
    word = _word(row)
    if word == "DOWN":
        return "unhealthy"
    return "healthy" if word == "UP" and row.get("check_status") == "L7OK" else "unknown"


def url(cluster: Cluster) -> str:
    """Where a cluster's front is reached."""
    unspecified = cluster.address in ("0.0.0.0", "::")
    host = (cluster.domain or "localhost") if unspecified else cluster.address
    return f"http://[{host}]:{cluster.port}" if ":" in host else f"http://{host}:{cluster.port}"


def backends(view: View) -> list[dict[str, Any]]:
    """The servers of a cluster's front."""
    return [_backend(view, member) for member in view.members]


def _backend(view: View, member: Member) -> dict[str, Any]:
    server = _server_of(view.front, member.node)
    row = view.stat.get(server.name, {})
    has_port = any(each.slot == server.slot for each in view.front.servers)
    return {
        "vmId": member.vm["id"],
        "name": member.node.name,
        "url": f"{view.cluster.backend_scheme}://{server.address}:{server.port}"
        if has_port
        else None,
        "address": server.address if has_port else None,
        "port": server.port if has_port else None,
        "weight": member.node.weight,
        "status": _word(row),
        "healthy": health(view, member.node) == "healthy",
        "lastCheck": row.get("check_desc") or None,
        "checkStatus": row.get("check_status") or None,
        "activeConnections": _whole(row, "scur"),
    }


def traffic(cluster: Cluster, totals: Totals) -> dict[str, Any]:
    """What went through a cluster's front since it was made."""
    return {
        "clusterId": cluster.id,
        "total_requests": totals.requests,
        "avg_latency_ms": totals.average_ms,
        "p95_latency_ms": totals.percentile_ms(0.95),
        "bandwidth_in_bytes": totals.bytes_in,
        "bandwidth_out_bytes": totals.bytes_out,
        "status_codes": dict(totals.codes),
        "since": iso(cluster.created_ms),
    }


def stats(view: View, uptime_s: int) -> dict[str, Any]:
    """What the balancer counts itself, since it loaded its configuration last."""
    whole = view.stat["FRONTEND"]
    return {
        "clusterId": view.cluster.id,
        "uptime_s": uptime_s,
        "current_sessions": _whole(whole, "scur"),
        "max_sessions": _whole(whole, "smax"),
        "request_rate": _whole(whole, "req_rate"),
        "backends": [_counted(view, member) for member in view.members],
    }


def _counted(view: View, member: Member) -> dict[str, Any]:
    row = view.stat.get(_server_of(view.front, member.node).name, {})
    return {
        "vmId": member.vm["id"],
        "requests": _whole(row, "stot"),
        "bytes_in": _whole(row, "bin"),
        "bytes_out": _whole(row, "bout"),
        "current": _whole(row, "scur"),
        "errors": sum(_whole(row, name) for name in ("econ", "eresp", "hrsp_5xx")),
        "avg_ms": _whole(row, "ttime") if _whole(row, "stot") else None,
    }


def figures(view: View, totals: Totals) -> Iterator[Metric]:
    """The same for Prometheus."""
    label = view.cluster.id
    requests = CounterMetricFamily(
        "casemate_cluster_requests", "Requests answered.", labels=("cluster", "code")
    )
    for code, count in totals.codes.items():
        requests.add_metric((label, code), count)
    yield requests
    moved = CounterMetricFamily(
        "casemate_cluster_bytes", "Bytes moved.", labels=("cluster", "direction")
    )
    moved.add_metric((label, "in"), totals.bytes_in)
    moved.add_metric((label, "out"), totals.bytes_out)
    yield moved
    yield _latency(label, totals)
    sessions = GaugeMetricFamily(
        "casemate_cluster_sessions", "Connections of clients.", labels=("cluster",)
    )
    sessions.add_metric((label,), _whole(view.stat["FRONTEND"], "scur"))
    yield sessions
    up = GaugeMetricFamily(
        "casemate_cluster_backend_up", "Whether a node is well.", labels=("cluster", "node", "vm")
    )
    for member in view.members:
        well = health(view, member.node) == "healthy"
        up.add_metric((label, member.node.name, str(member.vm["id"])), int(well))
    yield up


def _latency(label: str, totals: Totals) -> Metric:
    below, buckets = 0, []
    for upper, count in totals.buckets.items():
        below += count
        buckets.append(("+Inf" if upper == float("inf") else str(upper / 1000), below))
    latency = HistogramMetricFamily(
        "casemate_cluster_latency_seconds",
        "From a request's first byte to its answer's last.",
        labels=("cluster",),
    )
    latency.add_metric((label,), buckets, totals.milliseconds / 1000)
    return latency


def exposition(metrics: Sequence[Metric]) -> bytes:
    """Figures in Prometheus' text form."""
    registry = CollectorRegistry()
    registry.register(Collected(metrics))
    return generate_latest(registry)


def series(metrics: Sequence[Metric]) -> dict[str, list[dict[str, Any]]]:
    """Figures as JSON, by name."""
    found: dict[str, list[dict[str, Any]]] = {}
    for metric in metrics:
        for sample in metric.samples:
            one = {"labels": dict(sample.labels), "value": sample.value}
            found.setdefault(sample.name, []).append(one)
    return found


def _balancer(view: View) -> dict[str, Any] | None:
    if view.silence:
        return None
    cluster = view.cluster
    scripted = Strategy(cluster.strategy).is_scripted
    return {
        "engine": "haproxy+lua" if scripted else "haproxy",
        "listen": f"{cluster.address}:{cluster.port}",
        "url": url(cluster),
        "healthy": sum(health(view, member.node) == "healthy" for member in view.members),
        "total": len(view.members),
    }


def _server_of(front: Front, node: ClusterNode) -> Server:
    return front.server(node.slot)


def _word(row: Mapping[str, str]) -> str:
    """HAProxy's status of a server without what it says of transitions (`UP 1/2`)."""
    word = row.get("status", "").partition(" ")[0]
    return word if word in _STATUSES else "UNKNOWN"


def _whole(row: Mapping[str, str], name: str) -> int:
    return int(row.get(name) or 0)
