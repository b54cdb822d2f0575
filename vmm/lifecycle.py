"""The states of a VM: what is wished, what was observed, and the word shown for the pair (pure).

Source of the words: vmm.md section 5.
"""

from __future__ import annotations

from enum import StrEnum


class Wished(StrEnum):
    """What the owner asked for last; only calls of the owner (or the guest's power off) change it."""

    RUNNING = "running"
    SHUTDOWN = "shutdown"  # ends by itself, is not forced
    STOPPED = "stopped"  # is forced to end
    REMOVED = "removed"


class Observed(StrEnum):
    """What the host knows of the process; only vmm/reconcile.py changes it."""

    ABSENT = "absent"
    STARTING = "starting"  # a start was asked and is not confirmed
    ALIVE = "alive"


class Action(StrEnum):
    """What brings the host nearer to the wish."""

    NONE = "none"
    START = "start"
    STOP = "stop"
    REMOVE = "remove"
    ADOPT = "adopt"  # a process that lives and is not yet in the record
    BURY = "bury"  # a process in the record that has ended


def status(wished: str, observed: str, *, silent: bool = False) -> str:
    """The status word of vmm.md section 5 for a pair of facts; `silent`: its QEMU does not answer."""
    if wished == Wished.REMOVED:
        return "removing"
    if wished in (Wished.STOPPED, Wished.SHUTDOWN):
        return "stopped" if observed == Observed.ABSENT else "stopping"
    if silent and observed == Observed.ALIVE:
        return "unknown"
    return {Observed.ABSENT: "exited", Observed.STARTING: "starting"}.get(
        Observed(observed), "running"
    )


def next_action(wished: str, observed: str, lives: bool) -> Action:
    """The next step for one VM, given its record and whether its process lives right now.

    A VM that ended by itself (wished running, observed absent) is left alone: starting it again is
    asked for by setting `observed` to starting, by a call or by the restart policy.
    """
    if wished == Wished.REMOVED:
        return Action.REMOVE
    if wished == Wished.STOPPED:
        if lives or observed == Observed.STARTING:
            return Action.STOP
        return Action.BURY if observed == Observed.ALIVE else Action.NONE
    if lives:
        return Action.NONE if observed == Observed.ALIVE else Action.ADOPT
    if observed == Observed.ALIVE:
        return Action.BURY
    if observed == Observed.STARTING:
        return Action.START if wished == Wished.RUNNING else Action.BURY
    return Action.NONE


def is_at_rest(wished: str, observed: str) -> bool:
    """Whether resources and disk may change: status `stopped` or `exited`."""
    return wished != Wished.REMOVED and observed == Observed.ABSENT
