"""kill -9 with the real QEMU, on a guest that does nothing; and SQLite under a power cut."""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.common import rows
from tests.common.promises import breaches, is_settled, look
from tests.common.service import RunningService
from tests.common.waiting import until

MOMENTS = 50
FAULTS = {"CASEMATE_FAULTS_ALLOWED": "1"}


@pytest.fixture(scope="module")
def running() -> Iterator[RunningService]:
    qemu = shutil.which("qemu-system-x86_64")
    if qemu is None:
        pytest.skip("QEMU is not installed")
    folder = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp"))
    rows.image(folder / "images", kernel=rows.idle_kernel())
    service = RunningService(
        folder / "data",
        folder / "images",
        extra=f'qemu_path = "{qemu}"\naccel = "tcg"\n[server]\nworkers = 1\nthreads = 4\n',
    )
    service.start()
    yield service
    service.end()
    shutil.rmtree(folder)


@pytest.fixture
def service(running: RunningService) -> Iterator[RunningService]:
    """One service for all; a test leaves no VM to the next."""
    yield running
    assert is_settled(running)
    for vm_id in look(running):
        running.call("prpc/RemoveVm", id=vm_id)
    until(lambda: not look(running), seconds=60)
    assert running.qemus() == []


def well(service: RunningService, kept: set[str]) -> None:
    until(lambda: is_settled(service) and not breaches(service, kept, set()), seconds=30)


def test_a_vm_outlives_every_process_of_the_service(service: RunningService) -> None:
    vm_id = service.call("prpc/CreateVm", **rows.request())["id"]
    before = look(service)[vm_id]
    assert before.process is not None

    service.kill(everything=True)
    for runner in service.runners():
        runner.kill()
    service.start()

    well(service, {vm_id})
    assert look(service)[vm_id] == before
    service.call("prpc/StopVm", id=vm_id)
    assert look(service)[vm_id].status == "stopped"
    assert service.qemus() == []


def test_a_killed_qemu_is_told_and_started_again_by_hand(service: RunningService) -> None:
    vm_id = service.call("prpc/CreateVm", **rows.request())["id"]
    [qemu] = service.qemus()

    qemu.kill()

    service.wait_for(vm_id, within_s=30, status="exited")
    assert "killed by SIGKILL" in service.info(vm_id)["events"][-1]["body"]
    service.call("prpc/StartVm", id=vm_id)
    well(service, {vm_id})
    assert look(service)[vm_id].status == "running"


@pytest.mark.parametrize(
    ("point", "verb", "ends"),
    [
        ("process.described", "StartVm", {"running"}),
        # The service that is told of a start which failed keeps no wish.
        ("runner.spawned", "StartVm", {"running", "stopped"}),
        ("start.spawned", "StartVm", {"running"}),
        ("start.greeted", "StartVm", {"running"}),
    ],
)
def test_a_start_cut_off_makes_one_process(
    service: RunningService, point: str, verb: str, ends: set[str]
) -> None:
    vm_id = service.call("prpc/CreateVm", **rows.request(stopped=True))["id"]
    service.kill(everything=False)
    service.start(CASEMATE_FAULT=point, **FAULTS)

    with contextlib.suppress(OSError):
        service.request("POST", f"/prpc/{verb}", json={"id": vm_id})
    service.kill(everything=True)
    alive = [each.pid for each in service.qemus()]
    service.start()

    until(lambda: look(service)[vm_id].status in ends, seconds=30)
    well(service, {vm_id})
    assert len(service.qemus()) <= 1
    if alive:
        assert [each.pid for each in service.qemus()] == alive


@pytest.mark.parametrize("point", ["process.signalling", "stop.ended", "stop.buried"])
def test_a_stop_cut_off_is_finished(service: RunningService, point: str) -> None:
    vm_id = service.call("prpc/CreateVm", **rows.request())["id"]
    service.kill(everything=False)
    service.start(CASEMATE_FAULT=point, **FAULTS)

    with contextlib.suppress(OSError):
        service.request("POST", "/prpc/StopVm", json={"id": vm_id})
    service.kill(everything=True)
    service.start()

    until(lambda: look(service)[vm_id].status == "stopped", seconds=30)
    well(service, {vm_id})
    assert service.qemus() == []


WRITER = """
import sys
from pathlib import Path
from models.base import Database
from tests.common import rows

database = Database(Path(sys.argv[1]))
for number in range(100_000):
    with database.writing() as session:
        session.add(rows.vm(id=str(number), user_config="x" * 3000))
    print(number, Path(sys.argv[1] + "-wal").stat().st_size, flush=True)
"""


def test_every_acknowledged_commit_survives_a_power_cut(
    tmp_path: Path, empty_database: Path
) -> None:
    live = tmp_path / "casemate.db"
    shutil.copy(empty_database, live)
    dice = random.Random(8)
    # -c puts the current directory, the checkout, on the module path.
    with subprocess.Popen(
        [sys.executable, "-c", WRITER, live], stdout=subprocess.PIPE, text=True
    ) as writer:
        assert writer.stdout is not None
        os.set_blocking(writer.stdout.fileno(), True)
        try:
            for moment in range(MOMENTS):
                for _ in range(dice.randint(1, 12)):
                    last, size = map(int, writer.stdout.readline().split())
                writer.send_signal(signal.SIGSTOP)
                until(lambda: psutil.Process(writer.pid).status() == psutil.STATUS_STOPPED)
                copies = [tmp_path / f"{moment}.db", tmp_path / f"{moment}-cut.db"]
                for copy in copies:
                    shutil.copy(live, copy)
                    shutil.copy(f"{live}-wal", f"{copy}-wal")
                # What was written after the last commit that was acknowledged may be lost.
                os.truncate(f"{copies[1]}-wal", min(size, os.stat(f"{live}-wal").st_size))
                writer.send_signal(signal.SIGCONT)
                for copy in copies:
                    assert_whole(copy, last)
        finally:
            writer.kill()


def assert_whole(copy: Path, last: int) -> None:
    with contextlib.closing(sqlite3.connect(copy)) as database:
        assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        found = {int(row[0]) for row in database.execute("SELECT id FROM vms")}
    assert set(range(last + 1)) <= found
    copy.unlink()
