"""The types of jobs on single VMs (secretvm.md section 5); clusters add theirs in secretvm/cluster_jobs.py."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from accounts.service import Accounts
from core.errors import Invalid, NotFound, UpstreamTimeout
from secretvm import vm_object
from secretvm.jobs import Work, kind
from secretvm.service import SecretVms
from secretvm.vm_object import Row
from secretvm.vm_records import UPDATE

# How long a guest may take to give its first quote (secretvm.md section 3, skip_attest).
QUOTE_S = 600.0
# How long a VM that was asked to power off may take before it is ended by force.
SHUTDOWN_S = 60.0
LOOK_S = 0.5


def secret_vms(work: Work) -> SecretVms:
    """The verbs for a job."""
    return SecretVms(work.vms, Accounts.of(work.vms.config, work.vms.database))


def stopped(svms: SecretVms, vm_id: str) -> None:
    """Stops a VM and returns when it has ended; after a while by force."""
    svms.stop(vm_id)
    ended(svms, vm_id)


def ended(svms: SecretVms, vm_id: str) -> None:
    """Returns when a VM that was asked to power off has done so; ends it by force when it does not."""
    try:
        wait(svms, vm_id, lambda row: row.word != "stopping", SHUTDOWN_S, "end")
    except UpstreamTimeout:
        svms.vms.stop(vm_id)


def quoted(svms: SecretVms, vm_id: str, note: Callable[[int], None] = lambda _: None) -> None:
    """Returns when the guest of a VM has given a quote, or with skip_attest when it runs."""
    note(50)

    def is_there(row: Row) -> bool:
        if row.word in ("exited", "stopped", "stopping", "unknown"):
            why = row.vm.boot_error or f"it is {vm_object.status_of(row)}"
            raise Invalid(f"VM {row.vm.name} does not run: {why}")
        return row.word == "running" and vm_object.state_of(row) != "starting"

    wait(svms, vm_id, is_there, QUOTE_S, "give a quote")


def wait(
    svms: SecretVms, vm_id: str, is_there: Callable[[Row], bool], within_s: float, what: str
) -> None:
    """Returns when a VM is as wished; UpstreamTimeout says what it did not do, NotFound that it is gone."""
    deadline = time.monotonic() + within_s
    while not is_there(row := svms.row(vm_id)):
        if time.monotonic() > deadline:
            raise UpstreamTimeout(f"VM {row.vm.name} did not {what} within {within_s:g} s")
        time.sleep(LOOK_S)


@kind(UPDATE)
def update(work: Work) -> dict[str, Any]:
    """Makes a VM that runs boot what it was changed to."""
    svms, vm_id = secret_vms(work), str(work.argument["vm_id"])
    if work.argument["restart"]:
        stopped(svms, vm_id)
        work.progress(40)
        svms.vms.start(vm_id)
        quoted(svms, vm_id, work.progress)
    return {"vmId": vm_id}


@kind("vm.start")
def start(work: Work) -> dict[str, Any]:
    """Starts a VM."""
    svms, vm_id = secret_vms(work), str(work.argument["vm_id"])
    svms.start(vm_id)
    return _told(svms, vm_id)


@kind("vm.stop")
def stop(work: Work) -> dict[str, Any]:
    """Stops a VM and waits for its end."""
    svms, vm_id = secret_vms(work), str(work.argument["vm_id"])
    stopped(svms, vm_id)
    return _told(svms, vm_id)


@kind("vm.stopped")
def see_to_end(work: Work) -> dict[str, Any]:
    """Ends a VM by force that was asked to power off and does not; one that was started again is left alone."""
    svms, vm_id = secret_vms(work), str(work.argument["vm_id"])
    with contextlib.suppress(NotFound):
        ended(svms, vm_id)
    return {"vmId": vm_id}


@kind("vm.restart")
def restart(work: Work) -> dict[str, Any]:
    """Stops a VM, waits for its end, and starts it."""
    svms, vm_id = secret_vms(work), str(work.argument["vm_id"])
    stopped(svms, vm_id)
    work.progress(50)
    svms.start(vm_id)
    return _told(svms, vm_id)


@kind("vm.delete")
def delete(work: Work) -> dict[str, Any]:
    """Removes a VM; who may was looked at when the job was asked for."""
    vm_id = str(work.argument["vm_id"])
    with contextlib.suppress(NotFound):  # an interrupted try has removed it
        work.vms.remove(vm_id)
    return {"vmId": vm_id, "status": "terminated"}


def _told(svms: SecretVms, vm_id: str) -> dict[str, Any]:
    return {"vmId": vm_id, "status": vm_object.status_of(svms.row(vm_id))}
