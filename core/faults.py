"""Named moments at which a test can kill the service, to show that nothing is lost there.

`CASEMATE_FAULT=NAME[:N]` makes a process end as by SIGKILL when it passes the point NAME for the N-th time.  It is
heeded only by a service that a test has told so (CASEMATE_FAULTS_ALLOWED=1) and that guards nothing real.
"""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Mapping

from core.errors import Invalid

# Point -> what is done when it is passed, and what is not.  Each stands in the code once.
POINTS: Mapping[str, str] = {
    "create.checked": "the request is found good; nothing is kept of it",
    "create.leased": "row and port leases are written; the capacity is not yet looked at",
    "create.inserted": "the transaction is complete and not committed",
    "create.committed": "the row is there; nothing was made of it",
    "create.unanswered": "all is done; nobody was told",
    "start.wished": "the wish to run is kept; no process was asked for",
    "start.asked": "the start is asked for in the row; nothing was made",
    "start.spawned": "QEMU runs; the row does not say so",
    "start.greeted": "QEMU speaks QMP; the row does not say that it runs",
    "start.observed": "the row says that it runs; nobody was told",
    "stop.wished": "the wish to stop is kept; QEMU was not asked",
    "stop.ended": "QEMU is gone; the row says that it runs",
    "stop.buried": "the row says that it ended; nobody was told",
    "shutdown.asked": "the guest was asked to power off; the wish is not kept",
    "update.grown": "the disk is larger than the row says",
    "update.assigned": "the row is changed, the event is not appended; nothing is committed",
    "update.committed": "the row is changed; the guest's files are of the old one",
    "remove.marked": "the removal is wished; nothing was done",
    "remove.ended": "QEMU is gone; the folder is whole",
    "remove.half": "half of the folder is deleted",
    "remove.deleted": "the folder is gone; row and leases are not",
    "remove.forgotten": "the row is gone; the lock file is not",
    "lock.taken": "the VM's lock is held; its folder may be missing",
    "folder.made": "the folder is there; it may be empty",
    "folder.shared": "one file for the guest is written; the next is not",
    "folder.mirrored": "one mirror of the row is written; the next is not",
    "disk.made": "the data disk is complete, under its temporary name",
    "disk.shared": "the disk of the guest's files is complete, under its temporary name",
    "process.described": "QEMU's command line is written; QEMU was not started",
    "process.signalling": "QEMU is about to be told to end (first SIGTERM, then SIGKILL)",
    "runner.spawned": "QEMU runs; its pid is written nowhere",
    "runner.recorded": "QEMU's pid is written; the service was not told",
    "runner.ended": "QEMU ended; how is not written down",
    "cluster.made": "a node's VM is there; the cluster does not know that it is its own",
    "cluster.directed": "what a node gets of the traffic is written; the balancer does not do so yet",
    "cluster.changed": "a node's VM is to boot another plan; it runs what it was",
    "cluster.stopped": "a node's VM was stopped to be changed; nobody starts it",
    "cluster.left": "a node is out of the balancer's sight; its VM runs",
    "cluster.removed": "a cluster is gone for its callers; what it had is not",
    "migration.step": "one step of a migration is done; it is not committed",
    "migration.done": "the schema is the new one; the file's mode is not set",
}
VARIABLE = "CASEMATE_FAULT"
ALLOWED = "CASEMATE_FAULTS_ALLOWED"


class Fault:
    """One point and the number of passes that are still let through."""

    def __init__(self, name: str, passes: int) -> None:
        self.name = name
        self.passes = passes
        self._guard = threading.Lock()

    def passed(self, name: str) -> None:
        """Kills this process at the right pass of the right point."""
        if name != self.name:
            return
        with self._guard:
            self.passes -= 1
            if self.passes == 0:
                os.write(2, f"fault point {name}\n".encode())
                os.kill(os.getpid(), signal.SIGKILL)


_armed: Fault | None = None


def point(name: str) -> None:
    """A moment at which a test may kill this process; nothing otherwise."""
    if _armed is not None:
        _armed.passed(name)


def arm(environment: Mapping[str, str], *, simulated: bool, tee: str) -> None:
    """Heeds CASEMATE_FAULT; Invalid unless it is allowed, names a point, and no secret is at stake.

    `simulated` and `tee` say what the host's VMs run on: a host with a TEE, and one that does not simulate
    it, have VMs that somebody relies on.
    """
    global _armed
    wanted = environment.get(VARIABLE, "")
    if not wanted:
        return
    if environment.get(ALLOWED) != "1" or tee or not simulated:
        raise Invalid(
            f"{VARIABLE} kills the service on purpose and is for tests alone: "
            f"unset it (it needs {ALLOWED}=1, cvm.simulate and a host without a TEE)"
        )
    name, _, count = wanted.partition(":")
    if name not in POINTS or not (count or "1").isdecimal() or int(count or "1") < 1:
        raise Invalid.field(VARIABLE, "must be NAME or NAME:N with a point of core/faults.py")
    _armed = Fault(name, int(count or "1"))


def environment() -> dict[str, str]:
    """What a runner, which has a clean environment, is told of the armed point."""
    return {} if _armed is None else {VARIABLE: _armed.name}
