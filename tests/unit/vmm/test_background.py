from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any

import pytest

from core import prpc
from core.config import Config
from core.config_cvm import AutoRestartConfig, LogConfig
from core.messages import Report
from image.registry import Image
from models.base import Database
from models.vm import Vm
from tests.common import rows
from tests.common.waiting import until
from vmm import process, runner
from vmm.background import Background
from vmm.host import Host
from vmm.lifecycle import Observed, Wished
from vmm.schemas import Configuration, VmConfiguration
from vmm.service import Vms

Start = Callable[..., ForkProcess]


@pytest.fixture
def background() -> Iterator[Start]:
    """Starts background processes as `casemate serve` does, and ends them with the test."""
    started: list[ForkProcess] = []

    def start(vms: Vms, *, recover: bool = False) -> ForkProcess:
        child = multiprocessing.get_context("fork").Process(
            target=run, args=(vms, os.getpid(), recover)
        )
        child.start()
        started.append(child)
        return child

    yield start
    for child in started:
        child.terminate()
        child.join(60)
        assert child.exitcode is not None


def run(vms: Vms, parent: int, recover: bool) -> None:
    Background(vms).run(parent, recover=recover)
    os._exit(0)  # as `casemate serve` ends it: without waiting for its threads


def wanted(**fields: Any) -> Configuration:
    loaded: Configuration = prpc.load(VmConfiguration, rows.request(**fields))
    return loaded


def row(vms: Vms, vm_id: str) -> Vm:
    with vms.database.reading() as session:
        return session.get_one(Vm, vm_id)


def events(vms: Vms, vm_id: str) -> list[str]:
    return [each.event for each in row(vms, vm_id).events]


def live(vms: Vms, vm_id: str) -> process.Process:
    found = process.find(vms.reconciler.workdir(vm_id).path)
    assert found is not None
    return found


def notify(number: int, event: str, payload: str) -> str:
    params = {"event": event, "payload": payload}
    return json.dumps({"id": number, "method": "Notify", "params": params})


def watched(vms: Vms, vm_id: str) -> None:
    """Waits until the background process holds a VM's question port: the guest's first line arrived."""
    until(lambda: "hello" in events(vms, vm_id))


HELLO = notify(1, "hello", "")


def test_a_vm_that_dies_is_told_with_its_reason_before_the_next_sweep(
    vms: Vms, background: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vmm.background.SWEEP_S", 3600)
    rows.behave(vms.config.run_path, say=[HELLO])
    background(vms)
    vm_id = vms.create(wanted())
    watched(vms, vm_id)

    os.kill(live(vms, vm_id).pid, signal.SIGKILL)

    until(lambda: row(vms, vm_id).observed == Observed.ABSENT)
    last = row(vms, vm_id).events[-1]
    assert last.event == "vmm.exit"
    assert last.body.startswith("killed by SIGKILL")
    assert row(vms, vm_id).wished == Wished.RUNNING


def test_what_a_guest_tells_arrives(vms: Vms, background: Start) -> None:
    ids = {"app_id": "ab" * 20, "instance_id": "cd" * 20}
    say = [
        notify(1, "boot.progress", "starting containers"),
        "garbage",
        notify(2, "instance.info", json.dumps(ids)),
        notify(3, "boot.progress", "done"),
    ]
    rows.behave(vms.config.run_path, say=say)
    background(vms)

    vm_id = vms.create(wanted())

    until(lambda: row(vms, vm_id).boot_progress == "done")
    assert row(vms, vm_id).instance_id == "cd" * 20
    assert events(vms, vm_id) == ["vmm.start", "boot.progress", "instance.info", "boot.progress"]


def test_a_guest_that_powers_off_is_stopped_and_stays_so(
    config: Config, database: Database, host: Host, image: Image, background: Start
) -> None:
    restart = AutoRestartConfig(initial_backoff=1)
    vms = Vms(replace(config, cvm=replace(config.cvm, auto_restart=restart)), database, host)
    rows.behave(config.run_path, say=[HELLO, notify(2, "shutdown.progress", "powering off")])
    background(vms)
    vm_id = vms.create(wanted())
    until(lambda: row(vms, vm_id).wished == Wished.SHUTDOWN)

    os.kill(live(vms, vm_id).pid, signal.SIGTERM)

    until(lambda: row(vms, vm_id).observed == Observed.ABSENT)
    assert events(vms, vm_id)[-1] == "vmm.stop"
    assert row(vms, vm_id).next_restart_ms is None


def test_a_flooding_guest_does_not_keep_others_from_being_heard(
    vms: Vms, background: Start
) -> None:
    background(vms)
    rows.behave(vms.config.run_path, say=[HELLO, *[notify(2, "flood", "x" * 500)] * 20_000])
    noisy = vms.create(wanted())
    watched(vms, noisy)
    rows.behave(vms.config.run_path, say=[HELLO])

    quiet = vms.create(wanted())
    watched(vms, quiet)
    os.kill(live(vms, quiet).pid, signal.SIGKILL)

    until(lambda: row(vms, quiet).observed == Observed.ABSENT)
    assert len(row(vms, noisy).events) <= 20


def test_a_guests_last_words_before_its_removal_harm_nobody(vms: Vms, background: Start) -> None:
    info = notify(2, "instance.info", json.dumps({"instance_id": "cd" * 20}))
    rows.behave(vms.config.run_path, say=[HELLO, *[info] * 5000])
    child = background(vms)
    for _ in range(3):
        vm_id = vms.create(wanted())
        watched(vms, vm_id)

        vms.remove(vm_id)
        until(lambda vm_id=vm_id: vms.info(vm_id) is None)

    assert child.is_alive()
    until(lambda: not list(vms.config.run_path.glob("*-*")))


def test_a_removal_is_finished(vms: Vms, background: Start) -> None:
    running, stopped = vms.create(wanted()), vms.create(wanted(stopped=True))
    found = live(vms, running)
    background(vms)

    vms.remove(running)
    vms.remove(stopped)

    until(lambda: vms.info(running) is None and vms.info(stopped) is None)
    assert not process.is_alive(found)
    assert [path for path in vms.config.run_path.iterdir() if path.is_dir()] == []


def test_a_removal_that_cannot_be_finished_yet_is_tried_again(vms: Vms, background: Start) -> None:
    vm_id = vms.create(wanted())
    background(vms)
    with vms.reconciler.locked(vm_id):  # somebody works on it
        vms.remove(vm_id)
        info = vms.info(vm_id)
        assert info is not None
        assert info["status"] == "removing"

    until(lambda: vms.info(vm_id) is None)


def test_the_background_process_may_be_killed_at_any_time(vms: Vms, background: Start) -> None:
    rows.behave(vms.config.run_path, say=[HELLO])
    first = background(vms)
    vm_id = vms.create(wanted())
    watched(vms, vm_id)
    before = live(vms, vm_id)

    first.kill()
    first.join()
    background(vms)

    # The guest says hello to each host that connects.
    until(lambda: events(vms, vm_id).count("hello") == 2)
    assert live(vms, vm_id) == before
    os.kill(before.pid, signal.SIGKILL)
    until(lambda: row(vms, vm_id).observed == Observed.ABSENT)


def test_a_vm_that_died_while_nobody_looked_is_buried(vms: Vms, background: Start) -> None:
    vm_id = vms.create(wanted())
    process.end(vms.reconciler.workdir(vm_id).path, live(vms, vm_id), grace_s=1)

    background(vms)

    until(lambda: row(vms, vm_id).observed == Observed.ABSENT)
    assert events(vms, vm_id) == ["vmm.start", "vmm.exit"]


def test_the_start_of_the_service_starts_what_should_run(vms: Vms, background: Start) -> None:
    died, stopped, lives = (vms.create(wanted(stopped=kind)) for kind in (False, True, False))
    process.end(vms.reconciler.workdir(died).path, live(vms, died), grace_s=1)
    before = live(vms, lives)
    (vms.config.run_path / ".removed-vm.lock").touch()

    background(vms, recover=True)

    until(lambda: events(vms, died) == ["vmm.start", "vmm.exit", "vmm.start"])
    assert live(vms, lives) == before
    assert process.find(vms.reconciler.workdir(stopped).path) is None
    assert not (vms.config.run_path / ".removed-vm.lock").exists()


def test_a_vm_that_ends_while_the_service_starts_ended_by_itself(vms: Vms) -> None:
    vm_id = vms.create(wanted())
    process.end(vms.reconciler.workdir(vm_id).path, live(vms, vm_id), grace_s=1)
    background = Background(vms, born_ms=0)

    background._recover()
    background.sweep()
    background.pool.shutdown()

    assert events(vms, vm_id) == ["vmm.start", "vmm.exit"]


def test_a_vm_that_keeps_dying_is_started_again_with_pauses_until_it_is_given_up(
    config: Config,
    database: Database,
    host: Host,
    image: Image,
    background: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vmm.background.SWEEP_S", 0.1)
    restart = AutoRestartConfig(interval=1, initial_backoff=1, max_backoff=1, max_retries=2)
    vms = Vms(replace(config, cvm=replace(config.cvm, auto_restart=restart)), database, host)
    vm_id = vms.create(wanted())
    began = time.monotonic()
    process.end(vms.reconciler.workdir(vm_id).path, live(vms, vm_id), grace_s=1)
    rows.behave(config.run_path, fail="no more")

    background(vms)

    until(lambda: "vmm.auto_restart.exhausted" in events(vms, vm_id), seconds=30)
    assert time.monotonic() - began > 2.5
    assert events(vms, vm_id) == [
        "vmm.start",
        "vmm.exit",
        "vmm.start_failed",
        "vmm.start_failed",
        "vmm.auto_restart.exhausted",
    ]
    assert row(vms, vm_id).events[-1].body == "gave up after 2 tries"
    (config.run_path / "fake.json").unlink()
    vms.start(vm_id)
    assert (row(vms, vm_id).restarts, row(vms, vm_id).observed) == (0, Observed.ALIVE)


def test_a_vm_that_died_is_started_again_after_its_pause(
    config: Config, database: Database, host: Host, image: Image, background: Start
) -> None:
    restart = AutoRestartConfig(interval=1, initial_backoff=1)
    vms = Vms(replace(config, cvm=replace(config.cvm, auto_restart=restart)), database, host)
    background(vms)
    vm_id = vms.create(wanted())
    until(lambda: row(vms, vm_id).observed == Observed.ALIVE)

    began = time.monotonic()
    os.kill(live(vms, vm_id).pid, signal.SIGKILL)
    until(lambda: events(vms, vm_id) == ["vmm.start", "vmm.exit", "vmm.start"], seconds=20)

    assert time.monotonic() - began >= 0.9
    assert row(vms, vm_id).restarts == 1


def test_a_vm_that_runs_long_enough_is_forgiven(
    config: Config, database: Database, host: Host, image: Image, background: Start
) -> None:
    restart = AutoRestartConfig(reset_window=1)
    vms = Vms(replace(config, cvm=replace(config.cvm, auto_restart=restart)), database, host)
    vm_id = vms.create(wanted())
    with vms.database.writing() as session:
        vm = session.get_one(Vm, vm_id)
        vm.restarts, vm.next_restart_ms, vm.started_ms = 3, 5, vm.started_ms - 2000  # type: ignore[operator]

    background(vms)

    until(lambda: (row(vms, vm_id).restarts, row(vms, vm_id).next_restart_ms) == (0, None))


def test_a_large_log_is_rotated_while_its_vm_runs(
    config: Config, database: Database, host: Host, image: Image, background: Start
) -> None:
    small = LogConfig(max_bytes=1000, check_interval_secs=0)
    vms = Vms(replace(config, cvm=replace(config.cvm, log=small)), database, host)
    vm_id = vms.create(wanted())
    log = vms.reconciler.workdir(vm_id).serial_log
    background(vms)

    with open(log, "a") as console:
        console.write("x" * 2000)

    until(lambda: log.with_name("serial.log.1").exists() and log.stat().st_size < 1000)
    assert "x" * 2000 in log.with_name("serial.log.1").read_text()


def test_a_log_that_cannot_be_rotated_ends_nothing(
    config: Config,
    database: Database,
    host: Host,
    image: Image,
    background: Start,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vmm.rotation.rotate_large", full)
    eager = LogConfig(check_interval_secs=0)
    vms = Vms(replace(config, cvm=replace(config.cvm, log=eager)), database, host)
    with monkeypatch.context() as patch:
        patch.setattr("vmm.rotation.rotate_large", lambda *_: False)
        vm_id = vms.create(wanted())
    child = background(vms)

    vms.remove(vm_id)

    until(lambda: vms.info(vm_id) is None)
    assert child.is_alive()


def handles(pid: int, number: int) -> bool:
    caught = Path(f"/proc/{pid}/status").read_text().partition("SigCgt:")[2].split()[0]
    return bool(int(caught, 16) >> (number - 1) & 1)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_its_end_leaves_the_vms_alone(vms: Vms, background: Start, number: int) -> None:
    child = background(vms)
    vm_id = vms.create(wanted())
    before = live(vms, vm_id)
    until(lambda: row(vms, vm_id).observed == Observed.ALIVE)
    until(
        lambda: handles(child.pid or 0, signal.SIGTERM), what="the start of the background process"
    )

    with contextlib.suppress(ProcessLookupError):
        os.kill(child.pid or 0, number)
    child.join(60)

    assert child.exitcode == (0 if number == signal.SIGTERM else -9)
    assert live(vms, vm_id) == before


def test_it_ends_with_its_parent(vms: Vms) -> None:
    reading, writing = os.pipe()
    middle = os.fork()
    if middle == 0:
        parent, child = os.getpid(), os.fork()
        if child == 0:
            Background(vms).run(parent, recover=False)
            os._exit(0)
        os.write(writing, str(child).encode())
        os._exit(0)
    os.waitpid(middle, 0)
    child = process.Process(pid := int(os.read(reading, 20)), runner.start_time(pid))
    os.close(reading)
    os.close(writing)

    try:
        until(lambda: not process.is_alive(child))
    finally:
        if process.is_alive(child):
            os.kill(pid, signal.SIGKILL)


class Listening:
    """A duty that takes what runners report."""

    def __init__(self) -> None:
        self.reports: list[tuple[str, Report]] = []

    def start(self) -> None:
        """Has nothing to begin."""

    def stop(self) -> None:
        """Has nothing to end."""

    def heard(self, vm_id: str, report: Report) -> int:
        self.reports.append((vm_id, report))
        return 7


def test_what_a_runner_reports_goes_to_the_duty_that_hears_it(vms: Vms) -> None:
    duty = Listening()
    rows.behave(
        vms.config.run_path,
        say=[json.dumps({"id": 1, "method": "Job", "params": {"id": "job", "stage": "running"}})],
    )
    vm_id = vms.create(wanted())
    background = Background(vms, [duty])

    def heard() -> bool:
        background.sweep()
        background.serve(0.05)
        return bool(duty.reports)

    until(heard)
    assert duty.reports == [(vm_id, Report("job", "running"))]
