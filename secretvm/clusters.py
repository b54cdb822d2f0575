"""Clusters: what a call asks is one transaction of rows and a job; secretvm/cluster_jobs.py makes the host follow.

Source: secretvm.md section 6.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import select

from accounts.roles import Caller
from attest import compose
from core import faults, proc
from core.errors import Conflict, Invalid, NotFound, Unavailable
from models.base import Database
from models.cluster import Cluster, ClusterNode, ClusterPlan
from secretvm import cluster_object, cluster_records, jobs, traffic
from secretvm.balancer import UNSERVED, Balancer, Stat
from secretvm.cluster_nodes import Nodes
from secretvm.cluster_object import Member, View
from secretvm.cluster_records import ADD, CREATE, REMOVE, UPDATE
from secretvm.cluster_shape import Shape, check_shape
from secretvm.front import NODES_MOST, Traffic
from secretvm.service import SecretVms
from secretvm.vm_object import Row
from secretvm.wanted import Prepared, Wanted
from vmm.usage import Curve


@dataclass(frozen=True)
class Clusters:
    """The clusters of one data directory."""

    svms: SecretVms

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
            cluster_records.check_name(session, owner.project_id, asked.name)
        hashed = password_hash(shape.password) if shape.password else None
        # The domain is the front's: nodes wait for no DNS record.
        prepared = self.svms.prepare(owner, replace(asked, custom_domain="", skip_launch=None))
        with self.database.writing() as session:
            cluster_records.check_name(session, owner.project_id, asked.name)
            cluster = cluster_records.new_cluster(
                session, self.svms.config, owner, shape, prepared, hashed
            )
            plan = cluster_records.add_plan(session, cluster, prepared)
            for index in range(shape.count):
                cluster.nodes.append(
                    ClusterNode(
                        slot=index + 1,
                        name=cluster_records.node_name(cluster.name, index + 1),
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
            live = cluster_records.hold(session, cluster.id)
            if len(live) >= NODES_MOST:
                raise Conflict(f"the cluster has {NODES_MOST} nodes already; remove one first")
            cluster_records.forget_gone(session, cluster.id)
            slot = cluster_records.lowest({node.slot for node in live})
            name = asked.name or cluster_records.free_name(
                cluster.name, {node.name for node in live}
            )
            if any(node.name == name for node in live):
                raise Invalid.field("vmName", f"{name} is a node of this cluster already")
            node = ClusterNode(
                cluster_id=cluster.id,
                slot=slot,
                name=name,
                plan_id=cluster_records.add_plan(session, cluster, prepared).id,
                traffic=Traffic.CLOSED,
            )
            session.add(node)
            session.flush()
            argument = {"cluster_id": cluster.id, "node_id": node.id}
            return jobs.enqueue(session, ADD, cluster.project_id, argument), name

    def update_nodes(self, caller: Caller, cluster: Cluster, asked: Wanted) -> str:
        """Writes down what all nodes are to be made of; the job that changes them one by one.

        Conflict when a job holds the cluster.
        """
        prepared = self._changed(cluster, asked)
        with self.database.writing() as session:
            if not cluster_records.hold(session, cluster.id):
                raise Conflict("the cluster has no nodes; add one, or delete it")
            plan = cluster_records.add_plan(session, cluster, prepared)
            cluster_records.change(session, cluster.id, plan_id=plan.id)
            argument = {"cluster_id": cluster.id, "plan_id": plan.id, "by": caller.user_id}
            return jobs.enqueue(session, UPDATE, cluster.project_id, argument)

    def store_compose(self, cluster: Cluster, text: str) -> None:
        """Keeps a docker-compose text for nodes that are made from now on; Conflict when a job holds the cluster."""
        prepared = self._changed(cluster, Wanted(compose=text.encode()))
        with self.database.writing() as session:
            cluster_records.hold(session, cluster.id)
            plan = cluster_records.add_plan(session, cluster, prepared)
            cluster_records.change(session, cluster.id, plan_id=plan.id)

    def remove_node(self, cluster: Cluster, vm_id: str) -> None:
        """Takes a node out: it drains and is removed in a job.

        NotFound when it is none, Conflict when it is the last or a job holds the cluster.
        """
        with self.database.writing() as session:
            live = cluster_records.hold(session, cluster.id)
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
            cluster_records.change(session, cluster_id, is_removed=True)
        faults.point("cluster.removed")
        Nodes(self.svms).clear(cluster_id)

    # Questions -----------------------------------------------------------------------------------

    def find(self, caller: Caller, cluster_id: str) -> Cluster:
        """A cluster of the caller's projects; NotFound for all others alike."""
        with self.database.reading() as session:
            cluster = session.get(Cluster, cluster_id)
        seen = caller.is_operator or (
            cluster is not None and cluster.project_id in self.svms.accounts.roles(caller)
        )
        if cluster is None or cluster.is_removed or not seen:
            raise cluster_records.missing(cluster_id)
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
            job = cluster_records.job_of(session, cluster.id)
            plan = session.get_one(ClusterPlan, cluster.plan_id)
            front = cluster_records.front(session, cluster.id)
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

    def _member(self, node: ClusterNode, row: Row) -> Member:
        return Member(node, self.svms.vm_object(row), row.word)

    def _changed(self, cluster: Cluster, asked: Wanted) -> Prepared:
        """What nodes of a cluster are made of, with what is asked for now."""
        with self.database.reading() as session:
            before = cluster_records.prepared(
                cluster, session.get_one(ClusterPlan, cluster.plan_id)
            )
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
