"""What this interface does once per host, in the background process."""

from __future__ import annotations

from accounts.service import Accounts
from secretvm import tasks
from secretvm.jobs import Worker
from secretvm.service import SecretVms
from secretvm.watch import Watch
from vmm.background import Duty
from vmm.service import Vms

# Modules whose functions do jobs: importing them is what makes their types known.
TASKS = (tasks,)


def of(vms: Vms) -> list[Duty]:
    """The duties of this area."""
    accounts = Accounts.of(vms.config, vms.database)
    return [Worker(vms), Watch(SecretVms(vms, accounts))]
