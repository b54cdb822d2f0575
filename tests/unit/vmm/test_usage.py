from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError

from models.base import Database
from models.usage import UsageSample
from tests.common import rows
from tests.common.waiting import until
from vmm import background, records, usage
from vmm.background import Background
from vmm.service import Vms
from vmm.usage import Usage, curve, history, host_history

HOUR = usage.KEPT_MS


def write(database: Database, vm_id: str | None, *ages_s: float) -> None:
    """Samples of these ages."""
    now = records.now_ms()
    with database.writing() as session:
        for age in ages_s:
            at = now - int(age * 1000)
            session.add(UsageSample(vm_id=vm_id, at_ms=at, cpu_milli=500, memory_mb=64))


def count(database: Database) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(UsageSample)) or 0


@pytest.fixture
def vm_id(database: Database) -> str:
    """A VM in the record."""
    row = rows.vm()
    with database.writing() as session:
        session.add(row)
    return row.id


def test_a_busy_process_and_its_host_are_measured(database: Database, vm_id: str) -> None:
    busy = subprocess.Popen([sys.executable, "-c", "x = bytearray(50 << 20)\nwhile True: pass"])
    measured = Usage(database)
    try:
        began = time.monotonic()
        measured.sample({vm_id: busy.pid})
        assert count(database) == 0, "one look tells no share of a processor"
        until(lambda: _spent(busy.pid) > 0.5)
        measured.sample({vm_id: busy.pid})
        share = _spent(busy.pid) / (time.monotonic() - began)
    finally:
        busy.kill()
        busy.wait()

    cpu, memory = history(database, vm_id, processors=2, memory_mb=256)
    host_cpu, host_memory = host_history(database)
    assert cpu.now == pytest.approx(share, rel=0.5)
    assert 50 <= memory.now < 256
    assert cpu.now <= 2 * host_cpu.now
    assert (host_cpu.top, host_memory.top) >= (1.0, memory.now)


def _spent(pid: int) -> float:
    with open(f"/proc/{pid}/stat") as stat:
        return int(stat.read().rpartition(")")[2].split()[11]) / os.sysconf("SC_CLK_TCK")


def test_a_process_that_began_anew_is_not_charged_with_the_old_ones_time(
    database: Database, vm_id: str
) -> None:
    measured = Usage(database)
    measured.sample({vm_id: os.getppid()})
    measured.sample({vm_id: os.getpid()})
    measured.sample({vm_id: 2**22 + 1})  # no such process

    with database.reading() as session:
        assert not session.scalars(select(UsageSample).where(UsageSample.vm_id == vm_id)).all()


def test_samples_older_than_an_hour_go(database: Database, vm_id: str) -> None:
    write(database, vm_id, 3700, 10)
    write(database, None, 3700, 3500)

    Usage(database).sample({})

    assert count(database) == 2


def test_a_vm_that_was_removed_takes_its_samples_along(database: Database, vm_id: str) -> None:
    measured = Usage(database)
    measured.sample({vm_id: os.getpid()})
    write(database, vm_id, 10)
    with database.writing() as session:
        records_of = records.get(session, vm_id)
        session.delete(records_of)
    assert count(database) == 0

    before = records.now_ms()
    until(lambda: records.now_ms() > before)  # samples are told apart by the millisecond
    measured.sample({vm_id: os.getpid()})

    with database.reading() as session:
        assert session.scalars(select(UsageSample.vm_id)).all() == [None]


def test_a_full_disk_leaves_a_gap_and_no_more(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full() -> None:
        raise OperationalError("INSERT", {}, sqlite3.OperationalError("disk is full"))

    monkeypatch.setattr(Database, "writing", lambda self: full())

    Usage(database).sample({})


def test_the_background_process_measures_and_sweeps_no_more_for_it(
    vms: Vms, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = {"sweep": 0, "sample": 0}
    look, watch, measure = Background.serve, Background.sweep, Usage.sample

    def sweep(self: Background) -> None:
        done["sweep"] += 1
        watch(self)

    def sample(self: Usage, pids: dict[str, int]) -> None:
        done["sample"] += 1
        measure(self, pids)

    def serve(self: Background, timeout_s: float) -> None:
        self.stopping = done["sample"] == 8
        look(self, 0.005)

    monkeypatch.setattr(Background, "sweep", sweep)
    monkeypatch.setattr(Usage, "sample", sample)
    monkeypatch.setattr(Background, "serve", serve)
    monkeypatch.setattr(background, "INTERVAL_S", 0)
    monkeypatch.setattr(background, "SWEEP_S", 0.05)
    handlers = {each: signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)}
    try:
        Background(vms).run(os.getppid(), recover=False)
    finally:
        for each, handler in handlers.items():
            signal.signal(each, handler)

    assert count(vms.database) >= 6
    assert done["sweep"] == done["sample"]


def test_a_line_breaks_where_nobody_measured() -> None:
    now = HOUR * 10
    samples = [(now - HOUR, 0.0), (now - HOUR + 15_000, 1.0), (now - 15_000, 2.0), (now, 1.0)]

    drawn = curve(samples, 2.0, now)

    assert drawn.pieces == ("0.00,30.00 0.42,15.00", "99.58,0.00 100.00,15.00")
    assert (drawn.now, drawn.top) == (1.0, 2.0)


def test_more_than_all_raises_the_scale_and_old_values_are_not_now() -> None:
    now = HOUR * 10

    drawn = curve([(now - HOUR // 2, 6.0)], 2.0, now)

    assert drawn.pieces == ("50.00,0.00",)
    assert (drawn.now, drawn.top) == (0.0, 6.0)
