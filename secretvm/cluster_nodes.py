"""The nodes of clusters: made, changed, served and removed as their rows say; each step may be done again.

Source: secretvm.md section 6.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from sqlalchemy import delete, select, update

from core import faults
from core.errors import NotFound
from models.base import Database, met_row
from models.cluster import Cluster, ClusterNode, ClusterPlan
from models.vm import Vm
from secretvm import cluster_records
from secretvm.balancer import Balancer
from secretvm.front import Front, Traffic
from secretvm.service import SecretVms
from secretvm.vm_object import Flags
from vmm.lifecycle import Wished
from vmm.records import Owner


@dataclass(frozen=True)
class Nodes:
    """The nodes of the clusters of one data directory."""

    svms: SecretVms

    @property
    def database(self) -> Database:
        """Where the rows are."""
        return self.svms.database

    @property
    def balancer(self) -> Balancer:
        """What serves the fronts."""
        return Balancer(self.svms.vms)

    # Steps of jobs -------------------------------------------------------------------------------

    def of(self, cluster_id: str) -> list[ClusterNode]:
        """The nodes of a cluster by their places; NotFound when it is gone."""
        with self.database.reading() as session:
            cluster_records.present(session, cluster_id)
            return list(session.scalars(cluster_records.nodes(cluster_id)))

    def node(self, cluster_id: str, node_id: int) -> ClusterNode:
        """One node; NotFound when it is gone."""
        found = next((each for each in self.of(cluster_id) if each.id == node_id), None)
        if found is None:
            raise NotFound("the node is gone")
        return found

    def front(self, cluster_id: str) -> Front:
        """How a cluster is served; NotFound when it is gone."""
        with self.database.reading() as session:
            cluster_records.present(session, cluster_id)
            return cluster_records.front(session, cluster_id)

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
            cluster = cluster_records.present(session, cluster_id)
            prepared = cluster_records.prepared(cluster, session.get_one(ClusterPlan, node.plan_id))
        self._remove_unlinked(cluster, cluster_records.now_ms())
        vm_id = self.svms.make(
            Owner(cluster.project_id, cluster.user_id),
            prepared,
            name=node.name,
            cluster=(cluster.id, cluster.name),
            publish=(cluster.backend_port, cluster.health_port),
        )
        faults.point("cluster.made")
        with self.database.writing() as session:
            free = (ClusterNode.id == node_id, ClusterNode.vm_id.is_(None))
            is_linked = met_row(session, update(ClusterNode).where(*free).values(vm_id=vm_id))
        if not is_linked:
            self.svms.vms.remove(vm_id)
            raise cluster_records.missing(cluster_id)
        return vm_id

    def change(self, cluster_id: str, node_id: int, plan_id: int, by: str | None) -> None:
        """Makes a node's VM boot another plan at its next start; `by` is the user who asked for it."""
        node = self.node(cluster_id, node_id)
        with self.database.reading() as session:
            cluster = cluster_records.present(session, cluster_id)
            prepared = cluster_records.prepared(cluster, session.get_one(ClusterPlan, plan_id))
        self.svms.apply(
            str(node.vm_id),
            replace(prepared, name=node.name),
            by,
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
        faults.point("cluster.directed")
        self.balancer.settle()

    def note_error(self, cluster_id: str, message: str) -> None:
        """Notes why a cluster could not be made as asked; "" when it could."""
        with self.database.writing() as session:
            cluster_records.change(session, cluster_id, error=message)

    # Looking after -------------------------------------------------------------------------------

    def clear(self, cluster_id: str) -> None:
        """Removes the VMs of a cluster that is to be gone and, when they are, the cluster itself."""
        with self.database.reading() as session:
            cluster = session.get(Cluster, cluster_id)
        if cluster is None:
            return
        self._remove_unlinked(cluster, cluster_records.now_ms())
        for node in cluster.nodes:
            if node.vm_id is not None:
                self._remove_vm(node.vm_id)
        self.balancer.settle()
        with self.database.writing() as session:
            of_vms = select(ClusterNode.id).where(
                ClusterNode.cluster_id == cluster_id, ClusterNode.vm_id.is_not(None)
            )
            if session.scalar(of_vms.limit(1)) is None and not cluster_records.job_of(
                session, cluster_id
            ):
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
                if each not in removed and not cluster_records.job_of(session, each)
            ]
        for cluster_id in removed:
            self.clear(cluster_id)
        for cluster_id in left:
            self._tidy(cluster_id)

    def _tidy(self, cluster_id: str) -> None:
        """No job holds it: places without a VM go, nodes that should leave do, and all others are served."""
        with self.database.writing() as session:
            if cluster_records.job_of(session, cluster_id):
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
            cluster, now = session.get_one(Cluster, cluster_id), cluster_records.now_ms()
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
