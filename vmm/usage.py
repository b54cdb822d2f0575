"""CPU and memory of the host and of each VM over the last hour: measured, kept, and drawn as lines."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import psutil
from sqlalchemy import delete, insert, select
from sqlalchemy.exc import OperationalError

from models.base import Database
from models.usage import UsageSample
from models.vm import Vm
from vmm import records

logger = logging.getLogger(__name__)

INTERVAL_S = 15.0
KEPT_MS = 3600 * 1000
# Where samples are further apart than this, nobody measured: the service was down, or the VM.
_GAP_MS = 4 * INTERVAL_S * 1000


@dataclass(frozen=True)
class Look:
    """A process, the processor seconds it has spent till now, and its resident bytes."""

    pid: int
    busy_s: float
    memory: int


@dataclass
class Usage:
    """Measures now and then; a processor's share is what it did since the measurement before."""

    database: Database
    # Of the VMs, and of the host as None.
    last: dict[str | None, Look] = field(default_factory=dict)
    at: int = 0

    def sample(self, pids: Mapping[str, int]) -> None:
        """Writes one sample of the host and of each VM, by its process id, and drops what is too old.

        A process that was not measured before has no sample yet: its processor's share is not known.
        """
        now = records.now_ms()
        seen = dict(_measure(pids))
        taken = [
            {
                "vm_id": vm_id,
                "at_ms": now,
                "cpu_milli": round(max(0.0, look.busy_s - before.busy_s) / (now - at) * 1_000_000),
                "memory_mb": look.memory // 1024**2,
            }
            for vm_id, look in seen.items()
            if (before := self.last.get(vm_id)) and before.pid == look.pid and (at := self.at) < now
        ]
        self.last, self.at = seen, now
        try:
            self._write(now, taken)
        except OperationalError as error:  # the disk is full: a gap in a chart harms nobody
            logger.warning("the usage of host and VMs was not written: %s", error.orig)

    def _write(self, now: int, taken: Sequence[Mapping[str, Any]]) -> None:
        with self.database.writing() as session:
            session.execute(delete(UsageSample).where(UsageSample.at_ms < now - KEPT_MS))
            known = {None, *session.scalars(select(Vm.id))}  # one may have been removed meanwhile
            if found := [each for each in taken if each["vm_id"] in known]:
                session.execute(insert(UsageSample), found)


def _measure(pids: Mapping[str, int]) -> Iterator[tuple[str | None, Look]]:
    times, memory = psutil.cpu_times(), psutil.virtual_memory()
    # The first eight; a guest's time is in `user` already.
    busy = sum(times[:8]) - times.idle - times.iowait
    yield None, Look(0, busy, memory.total - memory.available)
    for vm_id, pid in pids.items():
        try:
            process = psutil.Process(pid)
            spent = process.cpu_times()
            yield vm_id, Look(pid, spent.user + spent.system, process.memory_info().rss)
        except psutil.Error:
            continue  # it ended just now


@dataclass(frozen=True)
class Curve:
    """One line of a chart: the newest value, the top of its scale, and pieces of SVG points.

    x runs from 0 (an hour ago) to 100 (now), y from 0 (the top of the scale) to 30 (nothing).
    """

    now: float
    top: float
    pieces: tuple[str, ...]


def history(
    database: Database, vm_id: str | None, *, processors: int, memory_mb: int
) -> tuple[Curve, Curve]:
    """The last hour of a VM (None: the host): processors in use, and memory in MB."""
    now = records.now_ms()
    columns = (UsageSample.at_ms, UsageSample.cpu_milli, UsageSample.memory_mb)
    with database.reading() as session:
        rows = session.execute(
            select(*columns)
            .where(UsageSample.vm_id == vm_id, UsageSample.at_ms > now - KEPT_MS)
            .order_by(UsageSample.at_ms)
        ).all()
    cpu = [(row.at_ms, row.cpu_milli / 1000) for row in rows]
    memory = [(row.at_ms, float(row.memory_mb)) for row in rows]
    return curve(cpu, float(processors), now), curve(memory, float(memory_mb), now)


def host_history(database: Database) -> tuple[Curve, Curve]:
    """The last hour of the host."""
    total = psutil.virtual_memory().total // 1024**2
    return history(database, None, processors=psutil.cpu_count() or 1, memory_mb=total)


def curve(samples: Sequence[tuple[int, float]], top: float, now_ms: int) -> Curve:
    """Samples (ms since 1970, value) as a line that breaks where nobody measured."""
    pieces: list[list[str]] = []
    before = None
    top = max([top, *(value for _, value in samples)])
    for at_ms, value in samples:
        if before is None or at_ms - before > _GAP_MS:
            pieces.append([])
        before = at_ms
        x = 100 - (now_ms - at_ms) / KEPT_MS * 100
        pieces[-1].append(f"{x:.2f},{30 - value / top * 30:.2f}")
    fresh = bool(samples) and now_ms - samples[-1][0] < _GAP_MS
    return Curve(samples[-1][1] if fresh else 0.0, top, tuple(" ".join(each) for each in pieces))
