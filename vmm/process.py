"""QEMU processes that outlive the service: start, recognise, signal, and read how they ended.

A process is known by its pid *and* start time, since pids are used again.  See vmm/runner.py for the
files and the lock.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from core import faults
from core.errors import Conflict, Unavailable
from core.files import write_atomic
from core.proc import CLEAN_ENV
from vmm import runner


@dataclass(frozen=True)
class Process:
    """A living process; `start` is field 22 of /proc/PID/stat."""

    pid: int
    start: int

    @property
    def started_ms(self) -> int:
        """When it was started, in milliseconds since 1970."""
        age_s = time.clock_gettime(time.CLOCK_BOOTTIME) - self.start / os.sysconf("SC_CLK_TCK")
        return int((time.time() - age_s) * 1000)


@dataclass(frozen=True)
class Ending:
    """How a QEMU ended: by code, by signal, or (both None) nobody saw it."""

    code: int | None
    signal: int | None
    at_ms: int

    def __str__(self) -> str:
        if self.signal is not None:
            known = self.signal in set(signal.Signals)
            return f"killed by {signal.Signals(self.signal).name if known else self.signal}"
        return "exit status unknown" if self.code is None else f"exit code {self.code}"


class StartFailed(Unavailable):
    """QEMU ended right after it was started; the message carries its last words."""


def spawn(workdir: Path, argv: Sequence[str]) -> Process:
    """Starts QEMU for a work directory in a session of its own and returns its identity.

    Raises Conflict when the VM's lock is held (it runs already) and StartFailed when there is no process.
    """
    write_atomic(workdir / "launch.json", json.dumps({"argv": list(argv)}, indent=1))
    faults.point("process.described")
    with (
        open(workdir / "stdout.log", "ab") as out,
        open(workdir / "stderr.log", "ab") as err,
    ):
        starter = subprocess.Popen(
            [sys.executable, "-I", "-S", runner.__file__, os.fspath(workdir)],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=err,
            env={**CLEAN_ENV, **faults.environment()},
            start_new_session=True,
        )
        code = _exit_code(starter, timeout_s=30)
    if code == runner.ALREADY_RUNNING:
        raise Conflict("the VM's process is running already")
    found = _recorded(workdir)
    if code != 0 or found is None:
        raise StartFailed(f"QEMU could not be started: {last_line(workdir / 'stderr.log')}")
    return found


def find(workdir: Path) -> Process | None:
    """The living QEMU of a work directory, whoever started it, or None."""
    recorded = _recorded(workdir)
    if recorded is not None and is_alive(recorded):
        return recorded
    # The lock outlives the record when a runner died between starting QEMU and writing it down.
    return _by_name(workdir.name) if is_locked(workdir) else None


def launched(workdir: Path) -> list[str]:
    """The command that a work directory's process was started with last; empty when there was none."""
    try:
        argv: list[str] = json.loads((workdir / "launch.json").read_bytes())["argv"]
        return argv
    except (OSError, ValueError, KeyError, TypeError):
        return []


def ending(workdir: Path) -> Ending | None:
    """How the last process of a work directory ended, when its runner could write it down."""
    try:
        record = json.loads((workdir / "exit.json").read_bytes())
        return Ending(record["code"], record["signal"], record["at_ms"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def is_alive(process: Process) -> bool:
    """Whether that very process still runs (a zombie does not)."""
    try:
        stat = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return False
    return int(stat[19]) == process.start and stat[0] not in "ZX"


def is_locked(workdir: Path) -> bool:
    """Whether QEMU or its runner holds the work directory's lock."""
    try:
        fd = os.open(workdir / "process.lock", os.O_RDWR | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
        return False
    except BlockingIOError:
        return True
    finally:
        os.close(fd)


def open_pidfd(process: Process) -> int | None:
    """A descriptor that becomes readable when the process ends; None when it has ended already."""
    try:
        fd = os.pidfd_open(process.pid)
    except ProcessLookupError:
        return None
    # Only now is the pid pinned: look at its start time again.
    if is_alive(process):
        return fd
    os.close(fd)
    return None


def end(workdir: Path, process: Process, *, grace_s: float) -> bool:
    """Ends a QEMU: SIGTERM, `grace_s` seconds later SIGKILL.  True when it and its runner are gone."""
    pidfd = open_pidfd(process)
    if pidfd is not None:
        try:
            for each, patience_s in ((signal.SIGTERM, grace_s), (signal.SIGKILL, 5.0)):
                faults.point("process.signalling")
                with contextlib.suppress(ProcessLookupError):
                    signal.pidfd_send_signal(pidfd, each)
                if is_ready(pidfd, patience_s):
                    break
        finally:
            os.close(pidfd)
    # Its runner writes the ending to a disk that may be busy.
    return wait_unlocked(workdir, 15)


def wait_unlocked(workdir: Path, patience_s: float) -> bool:
    """Waits until QEMU and its runner, who writes the ending first, are gone; False when they stay."""
    deadline = time.monotonic() + patience_s
    while is_locked(workdir):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


def is_ready(fd: int, patience_s: float) -> bool:
    """Whether a descriptor can be read within that time; any number will do, select() stops at 1023."""
    poll = select.poll()
    poll.register(fd, select.POLLIN)
    return bool(poll.poll(patience_s * 1000))


def last_line(path: Path) -> str:
    """The last line of a log that says something, at most 500 characters."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 4096))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines()]
        return next((line[:500] for line in reversed(lines) if line), "no message")
    return "no message"


def _exit_code(child: subprocess.Popen[bytes], *, timeout_s: float) -> int:
    # Popen.wait with a time-out looks in growing steps of up to 50 ms; a pidfd tells at once.
    pidfd = os.pidfd_open(child.pid)
    try:
        if not is_ready(pidfd, timeout_s):
            child.kill()
    finally:
        os.close(pidfd)
    return child.wait()


def _recorded(workdir: Path) -> Process | None:
    try:
        record = json.loads((workdir / "process.json").read_bytes())
        if record["boot_id"] != runner.boot_id():
            return None
        return Process(record["pid"], record["start"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _by_name(vm_id: str) -> Process | None:
    marker = f"\0-name\0{vm_id}\0".encode()
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and marker in (entry / "cmdline").read_bytes():
                pid = int(entry.name)
                return Process(pid, runner.start_time(pid))
    return None
