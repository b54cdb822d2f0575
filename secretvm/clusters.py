"""Clusters: what a call asks is one transaction of rows and a job; secretvm/cluster_jobs.py makes the host follow.

Source: secretvm.md section 6.
"""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from sqlalchemy import delete, select, update
from sqlalchemy.orm import Session

from accounts.roles import Caller
from attest import compose
from core import proc
from core.config import Config
from core.errors import Conflict, Invalid, NotFound, Unavailable
from models.base import Database
from models.cluster import Cluster, ClusterNode, ClusterPlan
from models.job import Job
from models.port import PortLease
from models.vm import Vm
from secretvm import cluster_object, jobs, traffic, wanted
from secretvm.balancer import UNSERVED, Balancer, Stat, read_fronts
from secretvm.cluster_object import Member, View
from secretvm.front import NODES_MOST, Front, Strategy, Traffic
from secretvm.service import SecretVms
from secretvm.vm_object import Flags, Row
from secretvm.wanted import Prepared, Wanted
from vmm.lifecycle import Wished
from vmm.records import Owner, free_port
from vmm.usage import Curve

CREATE, ADD, REMOVE, UPDATE = "cluster.create", "cluster.add", "cluster.remove", "cluster.update"
KINDS = (CREATE, ADD, REMOVE, UPDATE)

_NAME_MOST = 60
# A cluster in which a node is still found: what is on its way out is none.
_LIVE = (ClusterNode.vm_id.is_(None)) | ClusterNode.vm_id.in_(
    select(Vm.id).where(Vm.wished != Wished.REMOVED)
)


@dataclass(frozen=True)
class Shape:
    """What a new cluster is asked to be, beside what its nodes are (secretvm/wanted.py)."""

    count: int = 2
    strategy: Strategy = Strategy.ROUNDROBIN
    sticky: bool = False
    weights: tuple[int, ...] = ()
    backend_scheme: str = "https"
    backend_port: int = 443
    health_scheme: str = "https"
    health_path: str = "/cpu"
    health_port: int = 29343
    health_interval_s: int = 5
    health_timeout_s: int = 5
    max_connections: int = 1000
    domain: str = ""
    password: str = field(default="", repr=False)

    def weight(self, index: int) -> int:
        """The weight of the node at a place from 0."""
        return self.weights[index] if index < len(self.weights) else 1


@dataclass(frozen=True)
class Clusters:
    """The clusters of one data directory."""

    svms: SecretVms

    @property
    def config(self) -> Config:
        """The configuration of the service."""
        return self.svms.config

    @property
    def database(self) -> Database:
        """Where the rows are."""
        return self.svms.database

    @property
    def balancer(self) -> Balancer:
        """What serves the fronts."""
        return Balancer(self.svms.vms)

    # Verbs ---------------------------------------------------------------------------------------

    def create(self, caller: Caller, shape: Shape, asked: Wanted) -> str:
        """Writes down a cluster and returns the id of the job that makes its nodes."""
        owner = self.svms.owner_of_new(caller)
        check_shape(shape)
        with self.database.reading() as session:
            _check_name(session, owner.project_id, asked.name)
        hashed = password_hash(shape.password) if shape.password else None
        # The domain is the front's: nodes wait for no DNS record.
        prepared = self.svms.prepare(owner, replace(asked, custom_domain="", skip_launch=None))
        with self.database.writing() as session:
            _check_name(session, owner.project_id, asked.name)
            cluster = _new_cluster(session, self.config, owner, shape, prepared, hashed)
            plan = _add_plan(session, cluster, prepared)
            for index in range(shape.count):
                cluster.nodes.append(
                    ClusterNode(
                        slot=index + 1,
                        name=node_name(cluster.name, index + 1),
                        weight=shape.weight(index),
                        plan_id=plan.id,
                        traffic=Traffic.CLOSED,
                    )
                )
            return jobs.enqueue(session, CREATE, cluster.project_id, {"cluster_id": cluster.id})

    def add(self, cluster: Cluster, asked: Wanted) -> tuple[str, str]:
        """Writes down one more node; the job that makes it, and the node's name.

        Conflict when the cluster is full or a job holds it, Invalid when it has a node of that name.
        """
        prepared = self._changed(cluster, replace(asked, name=""))
        with self.database.writing() as session:
            live = _hold(session, cluster.id)
            if len(live) >= NODES_MOST:
                raise Conflict(f"the cluster has {NODES_MOST} nodes already; remove one first")
            _forget_gone(session, cluster.id)
            slot = _lowest({node.slot for node in live})
            name = asked.name or _free_name(cluster.name, {node.name for node in live})
            if any(node.name == name for node in live):
                raise Invalid.field("vmName", f"{name} is a node of this cluster already")
            node = ClusterNode(
                cluster_id=cluster.id,
                slot=slot,
                name=name,
                plan_id=_add_plan(session, cluster, prepared).id,
                traffic=Traffic.CLOSED,
            )
            session.add(node)
            session.flush()
            argument = {"cluster_id": cluster.id, "node_id": node.id}
            return jobs.enqueue(session, ADD, cluster.project_id, argument), name

    def update_nodes(self, cluster: Cluster, asked: Wanted) -> str:
        """Writes down what all nodes are to be made of; the job that changes them one by one.

        Conflict when a job holds the cluster.
        """
        prepared = self._changed(cluster, asked)
        with self.database.writing() as session:
            if not _hold(session, cluster.id):
                raise Conflict("the cluster has no nodes; add one, or delete it")
            plan = _add_plan(session, cluster, prepared)
            _set(session, cluster.id, plan_id=plan.id)
            argument = {"cluster_id": cluster.id, "plan_id": plan.id}
            return jobs.enqueue(session, UPDATE, cluster.project_id, argument)

    def store_compose(self, cluster: Cluster, text: str) -> None:
        """Keeps a docker-compose text for nodes that are made from now on; Conflict when a job holds the cluster."""
        prepared = self._changed(cluster, Wanted(compose=text.encode()))
        with self.database.writing() as session:
            _hold(session, cluster.id)
            plan = _add_plan(session, cluster, prepared)
            _set(session, cluster.id, plan_id=plan.id)

    def remove_node(self, cluster: Cluster, vm_id: str) -> None:
        """Takes a node out: it drains and is removed in a job.

        NotFound when it is none, Conflict when it is the last or a job holds the cluster.
        """
        with self.database.writing() as session:
            live = _hold(session, cluster.id)
            node = next((each for each in live if each.vm_id == vm_id), None)
            if node is None:
                raise NotFound(f"VM {vm_id[:64]} is no node of this cluster")
            if not any(
                each.vm_id and each.traffic != Traffic.LEAVING for each in live if each is not node
            ):
                raise Conflict("the last node cannot be removed; delete the cluster instead")
            node.traffic = Traffic.LEAVING
            argument = {"cluster_id": cluster.id, "node_id": node.id}
            jobs.enqueue(session, REMOVE, cluster.project_id, argument)

    def delete(self, cluster_id: str) -> None:
        """Makes a cluster gone for its callers; what it had goes now or, after a crash, later."""
        with self.database.writing() as session:
            _set(session, cluster_id, is_removed=True)
        self.clear(cluster_id)

    # Questions -----------------------------------------------------------------------------------

    def find(self, caller: Caller, cluster_id: str) -> Cluster:
        """A cluster of the caller's projects; NotFound for all others alike."""
        with self.database.reading() as session:
            cluster = session.get(Cluster, cluster_id)
        seen = caller.is_operator or (
            cluster is not None and cluster.project_id in self.svms.accounts.roles(caller)
        )
        if cluster is None or cluster.is_removed or not seen:
            raise _missing(cluster_id)
        return cluster

    def vm_of(self, caller: Caller, given: str) -> str:
        """The id of a VM that the caller may call by it or by its short id."""
        return str(self.svms.find(caller, given).vm.id)

    def objects(self, caller: Caller) -> list[dict[str, Any]]:
        """All clusters that a caller sees, newest first, as the list has them."""
        asked = select(Cluster).where(Cluster.is_removed.is_(False))
        if not caller.is_operator:
            asked = asked.where(Cluster.project_id.in_(self.svms.accounts.roles(caller)))
        with self.database.reading() as session:
            newest_first = asked.order_by(Cluster.created_ms.desc(), Cluster.id)
            clusters = session.scalars(newest_first).all()
        heard = self._hear()
        return [cluster_object.listed(self._view(cluster, *heard)) for cluster in clusters]

    def view(self, cluster: Cluster) -> View:
        """Everything that a cluster's object shows; a silent balancer is told, not raised."""
        return self._view(cluster, *self._hear())

    def _hear(self) -> tuple[dict[str, Stat], str]:
        """What the balancer says of all fronts, or why it says nothing."""
        try:
            return self.balancer.stats(), ""
        except Unavailable as error:
            return {}, error.message

    def _view(self, cluster: Cluster, stats: Mapping[str, Stat], silence: str) -> View:
        rows = {row.vm.id: row for row in self.svms.rows(None, cluster_id=cluster.id)}
        with self.database.reading() as session:
            job = _job_of(session, cluster.id)
            plan = session.get_one(ClusterPlan, cluster.plan_id)
            front = _front(session, cluster.id)
        return View(
            cluster=cluster,
            app=compose.document_of(plan.app_compose),
            members=[
                self._member(node, rows[node.vm_id])
                for node in cluster.nodes
                if node.vm_id in rows and node.traffic != Traffic.LEAVING
            ],
            job=job,
            front=front,
            stat=stats.get(cluster.id, {}),
            silence=silence or ("" if cluster.id in stats else UNSERVED),
        )

    def heard(self, cluster: Cluster) -> View:
        """The same; Unavailable when the balancer says nothing of the cluster."""
        view = self.view(cluster)
        if view.silence:
            raise Unavailable(view.silence)
        return view

    def totals(self, cluster_id: str) -> traffic.Totals:
        """What went through a cluster's front since it was made."""
        with self.database.reading() as session:
            return traffic.read(session, cluster_id)

    def history(self, cluster_id: str) -> tuple[Curve, Curve]:
        """The chart of a cluster's last hour."""
        with self.database.reading() as session:
            return traffic.history(session, cluster_id)

    # Steps of jobs -------------------------------------------------------------------------------

    def nodes(self, cluster_id: str) -> list[ClusterNode]:
        """The nodes of a cluster by their places; NotFound when it is gone."""
        with self.database.reading() as session:
            _present(session, cluster_id)
            return list(session.scalars(_nodes(cluster_id)))

    def node(self, cluster_id: str, node_id: int) -> ClusterNode:
        """One node; NotFound when it is gone."""
        found = next((each for each in self.nodes(cluster_id) if each.id == node_id), None)
        if found is None:
            raise NotFound("the node is gone")
        return found

    def front(self, cluster_id: str) -> Front:
        """How a cluster is served; NotFound when it is gone."""
        with self.database.reading() as session:
            _present(session, cluster_id)
            return _front(session, cluster_id)

    def skips_attestation(self, node: ClusterNode) -> bool:
        """Whether its maker wanted nobody to wait for the node's quote."""
        with self.database.reading() as session:
            plan = session.get_one(ClusterPlan, node.plan_id)
            return Flags.read(plan.flags).skip_attest

    def make(self, cluster_id: str, node_id: int) -> str:
        """Makes the VM of a node that has none, and returns its VM's id."""
        node = self.node(cluster_id, node_id)
        if node.vm_id is not None:
            return node.vm_id
        with self.database.reading() as session:
            cluster = _present(session, cluster_id)
            prepared = _prepared(cluster, session.get_one(ClusterPlan, node.plan_id))
        self._remove_unlinked(cluster, _now_ms())
        vm_id = self.svms.make(
            Owner(cluster.project_id, cluster.user_id),
            prepared,
            name=node.name,
            cluster=(cluster.id, cluster.name),
            publish=(cluster.backend_port, cluster.health_port),
        )
        with self.database.writing() as session:
            linked = session.execute(
                update(ClusterNode)
                .where(ClusterNode.id == node_id, ClusterNode.vm_id.is_(None))
                .values(vm_id=vm_id)
            )
        if not linked.rowcount:  # type: ignore[attr-defined] # an UPDATE's result has it
            self.svms.vms.remove(vm_id)
            raise _missing(cluster_id)
        return vm_id

    def change(self, cluster_id: str, node_id: int, plan_id: int) -> None:
        """Makes a node's VM boot another plan at its next start."""
        node = self.node(cluster_id, node_id)
        with self.database.reading() as session:
            cluster = _present(session, cluster_id)
            prepared = _prepared(cluster, session.get_one(ClusterPlan, plan_id))
        self.svms.apply(
            str(node.vm_id),
            replace(prepared, name=node.name),
            publish=(cluster.backend_port, cluster.health_port),
        )

    def note_plan(self, node_id: int, plan_id: int) -> None:
        """Notes what a node is made of now."""
        with self.database.writing() as session:
            session.execute(
                update(ClusterNode).where(ClusterNode.id == node_id).values(plan_id=plan_id)
            )

    def direct(self, node_id: int, to: Traffic) -> None:
        """Says what a node gets of the traffic, unless it leaves, and makes the balancer do so."""
        with self.database.writing() as session:
            session.execute(
                update(ClusterNode)
                .where(ClusterNode.id == node_id, ClusterNode.traffic != Traffic.LEAVING)
                .values(traffic=to)
            )
        self.balancer.settle()

    def note_error(self, cluster_id: str, message: str) -> None:
        """Notes why a cluster could not be made as asked; "" when it could."""
        with self.database.writing() as session:
            _set(session, cluster_id, error=message)

    # Looking after -------------------------------------------------------------------------------

    def clear(self, cluster_id: str) -> None:
        """Removes the VMs of a cluster that is to be gone and, when they are, the cluster itself."""
        with self.database.reading() as session:
            cluster = session.get(Cluster, cluster_id)
        if cluster is None:
            return
        self._remove_unlinked(cluster, _now_ms())
        for node in cluster.nodes:
            if node.vm_id is not None:
                self._remove_vm(node.vm_id)
        self.balancer.settle()
        with self.database.writing() as session:
            of_vms = select(ClusterNode.id).where(
                ClusterNode.cluster_id == cluster_id, ClusterNode.vm_id.is_not(None)
            )
            if session.scalar(of_vms.limit(1)) is None and not _job_of(session, cluster_id):
                session.execute(delete(Cluster).where(Cluster.id == cluster_id))

    def tend(self) -> None:
        """Brings to an end what a job that failed, or a process that was killed, has left of any cluster."""
        with self.database.reading() as session:
            removed = session.scalars(select(Cluster.id).where(Cluster.is_removed)).all()
            odd = select(ClusterNode.cluster_id).where(
                (ClusterNode.traffic != Traffic.OPEN) | ClusterNode.vm_id.is_(None)
            )
            left = [
                each
                for each in session.scalars(odd.distinct())
                if each not in removed and not _job_of(session, each)
            ]
        for cluster_id in removed:
            self.clear(cluster_id)
        for cluster_id in left:
            self._tidy(cluster_id)

    def _tidy(self, cluster_id: str) -> None:
        """No job holds it: places without a VM go, nodes that should leave do, and all others are served."""
        with self.database.writing() as session:
            if _job_of(session, cluster_id):
                return
            of_it = ClusterNode.cluster_id == cluster_id
            session.execute(delete(ClusterNode).where(of_it, ClusterNode.vm_id.is_(None)))
            session.execute(
                update(ClusterNode)
                .where(of_it, ClusterNode.traffic.in_((Traffic.DRAIN, Traffic.CLOSED)))
                .values(traffic=Traffic.OPEN)
            )
            leaving = select(ClusterNode.vm_id).where(of_it, ClusterNode.traffic == Traffic.LEAVING)
            vm_ids = session.scalars(leaving).all()
            cluster, now = session.get_one(Cluster, cluster_id), _now_ms()
        for vm_id in vm_ids:
            self._remove_vm(str(vm_id))
        self._remove_unlinked(cluster, now)

    def _remove_unlinked(self, cluster: Cluster, before_ms: int) -> None:
        """Removes VMs that were made for a cluster by a process that was killed before it wrote so down.

        `before_ms` is when no other was at it.
        """
        linked = {node.vm_id for node in cluster.nodes}
        with self.database.reading() as session:
            texts = select(ClusterPlan.app_compose).where(ClusterPlan.cluster_id == cluster.id)
            found = session.scalars(
                select(Vm.id).where(
                    Vm.project_id == cluster.project_id,
                    # Drawn for this cluster alone, as its texts were written for it.
                    Vm.app_id == cluster.app_id,
                    Vm.compose_file.in_(texts),
                    Vm.wished != Wished.REMOVED,
                    Vm.created_ms < before_ms,
                )
            ).all()
        for vm_id in found:
            if vm_id not in linked:
                self._remove_vm(vm_id)

    def _remove_vm(self, vm_id: str) -> None:
        try:
            self.svms.vms.remove(vm_id)
        except NotFound:
            return

    def _member(self, node: ClusterNode, row: Row) -> Member:
        return Member(node, self.svms.vm_object(row), row.word)

    def _changed(self, cluster: Cluster, asked: Wanted) -> Prepared:
        """What nodes of a cluster are made of, with what is asked for now."""
        with self.database.reading() as session:
            before = _prepared(cluster, session.get_one(ClusterPlan, cluster.plan_id))
        after = self.svms.changed(before, replace(asked, custom_domain="", skip_launch=None))
        # Empty means that it stays, to whoever changes a VM; a plan is whole.
        return replace(
            after,
            encrypted_env=after.encrypted_env or before.encrypted_env,
            user_config=after.user_config or before.user_config,
        )


def password_hash(password: str) -> str:
    """A password as HAProxy's user list has it: SHA-512 crypt, which every libcrypt knows."""
    hashed = proc.run(["openssl", "passwd", "-6", "-stdin"], input=password.encode() + b"\n")
    return hashed.stdout.decode().strip()


def node_name(cluster_name: str, number: int) -> str:
    """The name of a node that was given none."""
    return f"{cluster_name[: _NAME_MOST - 2]}-{number}"


def check_shape(shape: Shape) -> None:
    """Invalid when weights do not fit the nodes or the strategy."""
    if shape.weights and shape.strategy is not Strategy.ROUNDROBIN:
        raise Invalid.field("weights", "go with strategy roundrobin only")
    if len(shape.weights) > shape.count:
        raise Invalid.field("weights", f"are {len(shape.weights)}, for {shape.count} nodes")
    if not re.fullmatch(r"[\x20-\x7e]{0,128}", shape.password):
        raise Invalid.field("password_plaintext", "must be at most 128 printable ASCII characters")


# Rows --------------------------------------------------------------------------------------------


def _new_cluster(
    session: Session,
    config: Config,
    owner: Owner,
    shape: Shape,
    prepared: Prepared,
    hashed: str | None,
) -> Cluster:
    address, (first, last) = config.cluster.address, config.cluster.ports
    port = free_port(session, address, shape.backend_port, range(first, last + 1))
    now = _now_ms()
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


def _add_plan(session: Session, cluster: Cluster, prepared: Prepared) -> ClusterPlan:
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


def _prepared(cluster: Cluster, plan: ClusterPlan) -> Prepared:
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


def _check_name(session: Session, project_id: str, name: str) -> None:
    taken = select(Cluster.id).where(
        Cluster.project_id == project_id, Cluster.name == name, Cluster.is_removed.is_(False)
    )
    if session.scalar(taken) is not None:
        raise Invalid.field("clusterName", f"{name} is a cluster of this project already")


def _nodes(cluster_id: str) -> Any:
    """The nodes that are there or will be, by their places."""
    return (
        select(ClusterNode)
        .where(ClusterNode.cluster_id == cluster_id, _LIVE)
        .order_by(ClusterNode.slot)
    )


def _hold(session: Session, cluster_id: str) -> Sequence[ClusterNode]:
    """The nodes of a cluster that no job holds; Conflict when one holds it, NotFound without it."""
    _present(session, cluster_id)
    if job := _job_of(session, cluster_id):
        raise Conflict(f"another job ({job}) works on the cluster; try again when it is done")
    return session.scalars(_nodes(cluster_id)).all()


def _forget_gone(session: Session, cluster_id: str) -> None:
    """Frees the places of VMs that are on their way out."""
    session.execute(
        delete(ClusterNode)
        .where(ClusterNode.cluster_id == cluster_id, ~_LIVE)
        .execution_options(synchronize_session=False)
    )


def _job_of(session: Session, cluster_id: str) -> str:
    """The type of the unfinished job that holds a cluster, or ""."""
    found = session.scalar(
        select(Job.type).where(
            Job.status.in_(jobs.UNFINISHED),
            Job.type.in_(KINDS),
            Job.argument["cluster_id"].as_string() == cluster_id,
        )
    )
    return found or ""


def _present(session: Session, cluster_id: str) -> Cluster:
    cluster = session.get(Cluster, cluster_id)
    if cluster is None or cluster.is_removed:
        raise _missing(cluster_id)
    return cluster


def _front(session: Session, cluster_id: str) -> Front:
    found = read_fronts(session, cluster_id)
    if not found:
        raise _missing(cluster_id)
    return found[0]


def _set(session: Session, cluster_id: str, **values: Any) -> None:
    session.execute(
        update(Cluster).where(Cluster.id == cluster_id).values(**values, updated_ms=_now_ms())
    )


def _lowest(taken: Collection[int]) -> int:
    return next(number for number in range(1, NODES_MOST + 1) if number not in taken)


def _free_name(cluster_name: str, taken: Collection[str]) -> str:
    names = (node_name(cluster_name, number) for number in range(1, NODES_MOST + 2))
    return next(name for name in names if name not in taken)


def _missing(cluster_id: str) -> NotFound:
    return NotFound(f"cluster {cluster_id[:64]} not found")


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
