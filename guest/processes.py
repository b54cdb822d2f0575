"""Processes as /proc shows them: who descends from whom, and which signals they ignore."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h
_PROC = Path("/proc")
# How long the end of a fork is waited for, of one process and of all together; a job may have many.
_FORK_S, _FORKS_S = 0.1, 1.0
_LOOK_S = 0.005


@dataclass(frozen=True)
class Process:
    """One line of the table of processes."""

    pid: int
    state: str
    parent: int
    session: int


def table() -> dict[int, Process]:
    """All processes there are now."""
    found = {}
    for entry in os.listdir(_PROC):
        if entry.isdigit():
            with contextlib.suppress(OSError):
                # The program's name, in brackets, may hold anything.
                fields = (_PROC / entry / "stat").read_text().rpartition(") ")[2].split()
                pid = int(entry)
                found[pid] = Process(pid, fields[0], int(fields[1]), int(fields[3]))
    return found


def descendants(of: int) -> set[int]:
    """The processes that descend from one, without itself and without those that ended."""
    processes = table()
    found: set[int] = set()
    new = {of}
    while new:
        found |= new
        new = {each.pid for each in processes.values() if each.parent in new} - found
    return {pid for pid in found - {of} if processes[pid].state != "Z"}


def session(leader: int) -> set[int]:
    """The processes of a session and their descendants, without those that ended."""
    processes = table()
    members = {each.pid for each in processes.values() if each.session == leader}
    found = members.union(*(descendants(pid) for pid in members))
    return {pid for pid in found if pid in processes and processes[pid].state != "Z"}


def ask_to_end(pids: Iterable[int]) -> None:
    """SIGTERM; SIGHUP for who ignores that one, as interactive shells do, and obeys this one.

    Parents first: a shell whose child is ended before it goes on to its next command.
    """
    last = time.monotonic() + _FORKS_S
    for pid in sorted(pids):
        with contextlib.suppress(OSError):
            ignored = _ignored(pid, min(last, time.monotonic() + _FORK_S))
            hup_works = _bit(signal.SIGTERM) & ignored and not _bit(signal.SIGHUP) & ignored
            os.kill(pid, signal.SIGHUP if hup_works else signal.SIGTERM)


def kill(pids: Iterable[int]) -> None:
    """SIGKILL."""
    for pid in pids:
        with contextlib.suppress(OSError):
            os.kill(pid, signal.SIGKILL)


def _bit(number: signal.Signals) -> int:
    return 1 << (number - 1)


def _ignored(pid: int, deadline: float) -> int:
    """What a process ignores once it blocks SIGTERM no more, or still does at the deadline.

    In the middle of a fork an interactive shell blocks it and ignores it no longer; afterwards it does again, and
    what has come meanwhile is lost (bash, jobs.c, make_child).
    """
    blocked, ignored = _masks(pid)
    while blocked & _bit(signal.SIGTERM) and time.monotonic() < deadline:
        time.sleep(_LOOK_S)
        blocked, ignored = _masks(pid)
    return ignored


def _masks(pid: int) -> tuple[int, int]:
    text = (_PROC / str(pid) / "status").read_text()
    blocked, ignored = (
        re.search(rf"^{name}:\s*(\w+)$", text, re.MULTILINE) for name in ("SigBlk", "SigIgn")
    )
    return int(blocked[1], 16) if blocked else 0, int(ignored[1], 16) if ignored else 0


def adopt_orphans() -> None:
    """Makes this process the parent of those below it that lose theirs: none escapes by forking twice."""
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1)


def bury_orphans(known: Iterable[int]) -> None:
    """Collects our children that ended, but for `known` and those of our own session: somebody waits for their end."""
    ours, session_id, known = os.getpid(), os.getsid(0), set(known)
    for each in table().values():
        is_orphan = each.parent == ours and each.session != session_id and each.pid not in known
        if is_orphan and each.state == "Z":
            with contextlib.suppress(ChildProcessError):
                os.waitpid(each.pid, os.WNOHANG)
