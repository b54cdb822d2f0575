"""What this interface does once per host, in the background process."""

from __future__ import annotations

from accounts.service import Accounts
from secretvm import cluster_jobs, tasks
from secretvm.balancer import Balancer, Keeper
from secretvm.cluster_jobs import Tender
from secretvm.clusters import Clusters
from secretvm.jobs import Worker
from secretvm.service import SecretVms
from secretvm.traffic import Reader
from secretvm.watch import Watch
from vmm.background import Duty
from vmm.service import Vms

# Modules whose functions do jobs: importing them is what makes their types known.
TASKS = (tasks, cluster_jobs)


def of(vms: Vms) -> list[Duty]:
    """The duties of this area."""
    svms, balancer = SecretVms(vms, Accounts.of(vms.config, vms.database)), Balancer(vms)
    of_clusters: list[Duty] = [Reader(balancer), Keeper(balancer), Tender(Clusters(svms))]
    return [Worker(vms), Watch(svms), *of_clusters]
