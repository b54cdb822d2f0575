"""The rows of clusters: what is asked of them, what holds them, and how they are made.

Source: secretvm.md section 6.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from core.config import Config
from core.errors import Conflict, Invalid, NotFound
from models.cluster import Cluster, ClusterNode, ClusterPlan
from models.job import Job
from models.port import PortLease
from models.vm import Vm
from secretvm import jobs, wanted
from secretvm.balancer import read_fronts
from secretvm.cluster_shape import Shape
from secretvm.front import NODES_MOST, Front
from secretvm.vm_object import Flags
from secretvm.wanted import Prepared
from vmm.lifecycle import Wished
from vmm.records import Owner, free_port

CREATE, ADD, REMOVE, UPDATE = "cluster.create", "cluster.add", "cluster.remove", "cluster.update"
KINDS = (CREATE, ADD, REMOVE, UPDATE)

_NAME_MOST = 60
# A cluster in which a node is still found: what is on its way out is none.
LIVE = (ClusterNode.vm_id.is_(None)) | ClusterNode.vm_id.in_(
    select(Vm.id).where(Vm.wished != Wished.REMOVED)
)


def node_name(cluster_name: str, number: int) -> str:
    """The name of a node that was given none."""
    return f"{cluster_name[: _NAME_MOST - 2]}-{number}"


def new_cluster(
    session: Session,
    config: Config,
    owner: Owner,
    shape: Shape,
    prepared: Prepared,
    hashed: str | None,
) -> Cluster:
    """Adds a cluster without nodes, and leases its front a port; `hashed` is its password."""
    address, (first, last) = config.cluster.address, config.cluster.ports
    port = free_port(session, address, shape.backend_port, range(first, last + 1))
    now = now_ms()
    cluster = Cluster(
        id=str(uuid.uuid4()),
        project_id=owner.project_id,
        user_id=owner.user_id,
        name=prepared.name,
        vm_type=prepared.vm_type,
        app_id=prepared.app_id,
        domain=shape.domain,
        address=address,
        port=port.host_port,
        strategy=shape.strategy,
        sticky=shape.sticky,
        max_connections=shape.max_connections,
        password_hash=hashed,
        backend_scheme=shape.backend_scheme,
        backend_port=shape.backend_port,
        health_scheme=shape.health_scheme,
        health_path=shape.health_path,
        health_port=shape.health_port,
        health_interval_s=shape.health_interval_s,
        health_timeout_s=shape.health_timeout_s,
        created_ms=now,
        updated_ms=now,
    )
    session.add(cluster)
    session.flush()
    session.add(
        PortLease(
            cluster_id=cluster.id,
            position=0,
            protocol="tcp",
            host_address=address,
            host_port=port.host_port,
            vm_port=shape.backend_port,
            own=True,
        )
    )
    return cluster


def add_plan(session: Session, cluster: Cluster, prepared: Prepared) -> ClusterPlan:
    """Keeps a plan; the first is the cluster's, later ones where their caller says so."""
    plan = ClusterPlan(
        cluster_id=cluster.id,
        app_compose=prepared.app_compose,
        encrypted_env=prepared.encrypted_env,
        user_config=prepared.user_config,
        flags=wanted.kept_flags(prepared.flags),
        publish=list(prepared.publish),
    )
    session.add(plan)
    session.flush()
    if cluster.plan_id is None:
        cluster.plan_id = plan.id
    return plan


def prepared(cluster: Cluster, plan: ClusterPlan) -> Prepared:
    """What a plan makes of a node."""
    return Prepared(
        app_id=cluster.app_id,
        app_compose=plan.app_compose,
        encrypted_env=plan.encrypted_env,
        user_config=plan.user_config,
        vm_type=cluster.vm_type,
        name=cluster.name,
        flags=Flags.read(plan.flags),
        registration=None,
        publish=tuple(plan.publish),
    )


def check_name(session: Session, project_id: str, name: str) -> None:
    """Invalid when the project has a cluster of that name."""
    taken = select(Cluster.id).where(
        Cluster.project_id == project_id, Cluster.name == name, Cluster.is_removed.is_(False)
    )
    if session.scalar(taken) is not None:
        raise Invalid.field("clusterName", f"{name} is a cluster of this project already")


def nodes(cluster_id: str) -> Any:
    """The nodes that are there or will be, by their places."""
    return (
        select(ClusterNode)
        .where(ClusterNode.cluster_id == cluster_id, LIVE)
        .order_by(ClusterNode.slot)
    )


def hold(session: Session, cluster_id: str) -> Sequence[ClusterNode]:
    """The nodes of a cluster that no job holds; Conflict when one holds it, NotFound without it."""
    present(session, cluster_id)
    if job := job_of(session, cluster_id):
        raise Conflict(f"another job ({job}) works on the cluster; try again when it is done")
    return session.scalars(nodes(cluster_id)).all()


def forget_gone(session: Session, cluster_id: str) -> None:
    """Frees the places of VMs that are on their way out."""
    session.execute(
        delete(ClusterNode)
        .where(ClusterNode.cluster_id == cluster_id, ~LIVE)
        .execution_options(synchronize_session=False)
    )


def job_of(session: Session, cluster_id: str) -> str:
    """The type of the unfinished job that holds a cluster, or ""."""
    found = session.scalar(
        select(Job.type).where(
            Job.status.in_(jobs.UNFINISHED),
            Job.type.in_(KINDS),
            Job.argument["cluster_id"].as_string() == cluster_id,
        )
    )
    return found or ""


def present(session: Session, cluster_id: str) -> Cluster:
    """A cluster; NotFound when it is gone."""
    cluster = session.get(Cluster, cluster_id)
    if cluster is None or cluster.is_removed:
        raise missing(cluster_id)
    return cluster


def front(session: Session, cluster_id: str) -> Front:
    """How a cluster is served; NotFound when it is gone."""
    found = read_fronts(session, cluster_id)
    if not found:
        raise missing(cluster_id)
    return found[0]


def change(session: Session, cluster_id: str, **values: Any) -> None:
    """Changes columns of a cluster."""
    session.execute(
        update(Cluster).where(Cluster.id == cluster_id).values(**values, updated_ms=now_ms())
    )


def lowest(taken: Collection[int]) -> int:
    """The first place that no node has."""
    return next(number for number in range(1, NODES_MOST + 1) if number not in taken)


def free_name(cluster_name: str, taken: Collection[str]) -> str:
    """The first name of a node that none has."""
    names = (node_name(cluster_name, number) for number in range(1, NODES_MOST + 2))
    return next(name for name in names if name not in taken)


def missing(cluster_id: str) -> NotFound:
    """The refusal of a cluster that is not there, or not for the caller."""
    return NotFound(f"cluster {cluster_id[:64]} not found")


def now_ms() -> int:
    """Now, in milliseconds since 1970."""
    return time.time_ns() // 1_000_000
