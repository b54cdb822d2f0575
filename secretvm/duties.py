"""What this interface does once per host, in the background process."""

from __future__ import annotations

import functools

from accounts.service import Accounts
from secretvm import billing, cluster_jobs, pricing, tasks, watch
from secretvm.balancer import Balancer, Keeper
from secretvm.cluster_nodes import Nodes
from secretvm.jobs import Worker
from secretvm.rounds import Round
from secretvm.service import SecretVms
from secretvm.traffic import Reader
from vmm.background import Duty
from vmm.service import Vms

# Modules whose functions do jobs: importing them is what makes their types known.
TASKS = (tasks, cluster_jobs)

# How long a job whose bell was lost, or a guest that is up, may go unnoticed.
SWEEP_S = 2.0
LOOK_S = 2.0
CHARGE_S = 60.0
# The same of HAProxy's end or a row's change.
BALANCE_S = 0.25
# How old the figures in the database may be; they have to be there within a second.
COUNT_S = 0.4
TEND_S = 2.0


def of(vms: Vms) -> list[Duty]:
    """The duties of this area."""
    svms, worker = SecretVms(vms, Accounts.of(vms.config, vms.database)), Worker(vms)
    return [
        worker,
        Round("looking for jobs", SWEEP_S, worker.sweep),
        Round("looking for quotes", LOOK_S, functools.partial(watch.look_for_quotes, svms)),
        *_of_money(vms),
        *_of_clusters(svms, Balancer(vms)),
    ]


def _of_money(vms: Vms) -> list[Duty]:
    config, known = vms.config, (vms.database, vms.config)
    found: list[Duty] = []
    if config.secretvm.coin_price_url:
        fetch = functools.partial(pricing.fetch, *known)
        found.append(Round("fetching the price", config.secretvm.coin_price_interval_s, fetch))
    if config.billing.enabled:
        found.append(Round("charging", CHARGE_S, functools.partial(billing.charge, *known)))
    return found


def _of_clusters(svms: SecretVms, balancer: Balancer) -> list[Duty]:
    return [
        # What is there when the service ends is counted still.
        Round("counting traffic", COUNT_S, Reader(balancer).read_all, once_more=True),
        Round("the balancer", BALANCE_S, Keeper(balancer).look),
        Round("clusters", TEND_S, Nodes(svms).tend),
    ]
