from __future__ import annotations

import json
import os
import re
import signal
import socket
import stat
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from core import files, prpc
from core.config import Config
from core.errors import CasemateError, Conflict, Invalid, NotFound, Unavailable, UpstreamTimeout
from image.registry import Image
from models.base import Database
from models.port import PortLease
from models.vm import Vm, VmEvent
from tests.common import rows
from tests.common.waiting import free_port, until
from vmm import process, reconcile
from vmm.background import Background
from vmm.host import Host
from vmm.lifecycle import Observed, Wished
from vmm.process import StartFailed
from vmm.schemas import Configuration, VmConfiguration
from vmm.service import Vms
from vmm.workdir import WorkDir


def wanted(**fields: Any) -> Configuration:
    loaded: Configuration = prpc.load(VmConfiguration, rows.request(**fields))
    return loaded


def row(vms: Vms, vm_id: str) -> Vm:
    with vms.database.reading() as session:
        return session.get_one(Vm, vm_id)


def change(vms: Vms, vm_id: str, **columns: object) -> None:
    with vms.database.writing() as session:
        vm = session.get_one(Vm, vm_id)
        for name, value in columns.items():
            setattr(vm, name, value)


def events(vms: Vms, vm_id: str) -> list[str]:
    return [each.event for each in row(vms, vm_id).events]


def live(vms: Vms, vm_id: str) -> process.Process | None:
    return process.find(vms.reconciler.workdir(vm_id).path)


def left_over(vms: Vms) -> list[object]:
    """Everything that a VM could leave behind."""
    with vms.database.reading() as session:
        found: list[object] = [
            row for table in (Vm, PortLease, VmEvent) for row in session.query(table)
        ]
    folder = vms.config.run_path
    found += [path for path in folder.glob("*") if path.name != "fake.json"]
    mark = str(vms.config.run_path).encode()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            try:
                found += [entry] if mark in (entry / "cmdline").read_bytes() else []
            except OSError:
                continue
    return found


# Start ---------------------------------------------------------------------------------------------


def test_a_started_vm_is_recorded_as_it_runs(vms: Vms) -> None:
    before = time.time_ns() // 1_000_000
    vm_id = vms.create(wanted())

    vm, found = row(vms, vm_id), live(vms, vm_id)

    assert found is not None
    assert (vm.wished, vm.observed) == (Wished.RUNNING, Observed.ALIVE)
    assert (vm.pid, vm.pid_start) == (found.pid, found.start)
    assert (vm.accel, vm.boot_progress, vm.boot_error) == ("tcg", "booting", "")
    assert vm.started_ms is not None
    assert before - 1000 <= vm.started_ms <= time.time_ns() // 1_000_000 + 1000
    assert events(vms, vm_id) == ["vmm.start"]


def test_everything_of_a_vm_is_closed_to_others(vms: Vms) -> None:
    old = os.umask(0o077)  # as `casemate serve` sets it
    try:
        vm_id = vms.create(wanted(encrypted_env="00"))
    finally:
        os.umask(old)

    for path in (vms.config.run_path / vm_id).rglob("*"):
        assert stat.S_IMODE(path.stat().st_mode) & 0o077 == 0, path


def test_no_secret_is_in_the_command_line(vms: Vms) -> None:
    vm_id = vms.create(wanted(encrypted_env=b"hunter2".hex(), user_config="hunter2"))
    found = live(vms, vm_id)
    assert found is not None

    seed = (vms.config.tee_dir / "seed").read_bytes().hex()
    command = Path(f"/proc/{found.pid}/cmdline").read_text()
    assert "hunter2" not in command
    assert seed not in command


def test_a_port_leads_to_a_bound_port(vms: Vms) -> None:
    tcp, udp = free_port(), free_port(socket.SOCK_DGRAM)
    vms.create(wanted(ports=[rows.port(tcp), rows.port(udp, protocol="udp")]))

    with socket.socket() as probe, pytest.raises(OSError, match="in use"):
        probe.bind(("127.0.0.1", tcp))
    with socket.socket(type=socket.SOCK_DGRAM) as probe, pytest.raises(OSError, match="in use"):
        probe.bind(("127.0.0.1", udp))


def test_the_console_log_says_when_each_boot_began(vms: Vms) -> None:
    vm_id = vms.create(wanted())
    vms.stop(vm_id)
    vms.start(vm_id)

    log = vms.reconciler.workdir(vm_id).serial_log.read_text()
    assert (
        len(re.findall(r"^===== boot @ \d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ =====$", log, re.MULTILINE))
        == 2
    )


def occupied(port: int) -> socket.socket:
    return socket.create_server(("127.0.0.1", port))


def broken(vms: Vms, **rules: Any) -> None:
    rows.behave(vms.config.run_path, **rules)


@pytest.mark.parametrize(
    ("spoil", "kind", "match"),
    [
        (
            lambda vms: broken(vms, fail="could not load kernel"),
            StartFailed,
            "could not load kernel",
        ),
        (
            lambda vms: broken(vms, end_on=["query-status"]),
            None,
            "",
        ),
        (lambda vms: broken(vms, qmp="hang"), UpstreamTimeout, "QEMU did not answer"),
        (lambda vms: broken(vms, qmp="garbage"), UpstreamTimeout, "QEMU did not answer"),
        (
            lambda vms: (vms.config.image.path / rows.IMAGE / "bzImage").write_text("changed"),
            Invalid,
            "bzImage changed since it was built",
        ),
        (
            lambda vms: (vms.config.image.path / rows.IMAGE).rename(vms.config.data_dir / "x"),
            Invalid,
            "image tiny-0.5.4 not found",
        ),
    ],
    ids=["ends at once", "ends after its greeting", "hangs", "garbage", "changed", "image gone"],
)
def test_a_start_that_fails_leaves_a_stopped_vm_without_a_process(
    vms: Vms,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Vms], object],
    kind: type[CasemateError] | None,
    match: str,
) -> None:
    if kind is UpstreamTimeout:
        monkeypatch.setattr(reconcile, "QMP_GREETING_S", 0.5)
    vm_id = vms.create(wanted(stopped=True))
    spoil(vms)

    if kind is None:
        vms.start(vm_id)  # it did start; that it ended is another matter
        until(lambda: live(vms, vm_id) is None)
        vms.reconciler.one(vm_id)
        assert row(vms, vm_id).wished == Wished.RUNNING
        assert events(vms, vm_id) == ["vmm.start", "vmm.exit"]
    else:
        with pytest.raises(kind, match=re.escape(match)):
            vms.start(vm_id)
        assert row(vms, vm_id).wished == Wished.STOPPED
        assert match in row(vms, vm_id).boot_error
        assert events(vms, vm_id) == ["vmm.start_failed"]

    assert row(vms, vm_id).observed == Observed.ABSENT
    assert live(vms, vm_id) is None
    assert not process.is_locked(vms.reconciler.workdir(vm_id).path)


def test_a_port_that_another_program_has_is_named(vms: Vms) -> None:
    port = free_port()
    vm_id = vms.create(wanted(stopped=True, ports=[rows.port(port)]))

    with occupied(port), pytest.raises(Conflict, match=f"tcp 127.0.0.1:{port} cannot be bound"):
        vms.start(vm_id)

    vms.start(vm_id)  # and the refusal has no aftermath
    assert row(vms, vm_id).observed == Observed.ALIVE


def test_a_host_without_a_tee_says_what_to_set(
    config: Config, database: Database, host: Host, image: Image
) -> None:
    plain = replace(config, cvm=replace(config.cvm, simulate=False))
    vms = Vms(plain, database, host)

    vm_id = vms.create(wanted(stopped=True))

    with pytest.raises(Invalid, match=r"this host has no TDX or SEV-SNP; set no_tee"):
        vms.start(vm_id)


@pytest.mark.parametrize(
    "rules",
    [{"fail": "could not load kernel"}, {"qmp": "hang"}, {"qmp": "garbage"}],
    ids=str,
)
def test_a_creation_that_fails_leaves_nothing(
    vms: Vms, monkeypatch: pytest.MonkeyPatch, rules: dict[str, str]
) -> None:
    monkeypatch.setattr(reconcile, "QMP_GREETING_S", 0.5)
    rows.behave(vms.config.run_path, **rules)

    with pytest.raises(CasemateError):
        vms.create(wanted(ports=[rows.port(free_port())]))

    assert left_over(vms) == []


def test_creations_that_fail_while_their_process_still_ends_leave_nothing(vms: Vms) -> None:
    rows.behave(vms.config.run_path, fail="no")

    for _ in range(10):
        with pytest.raises(StartFailed):
            vms.create(wanted())

    assert left_over(vms) == []


@pytest.mark.parametrize("step", ["boot_files.write", "disk.create_share", "disk.create_data_disk"])
def test_a_fault_while_creating_leaves_nothing(
    vms: Vms, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(f"vmm.{step}", full)

    with pytest.raises(OSError, match="No space left"):
        vms.create(wanted(ports=[rows.port(free_port())]))

    assert left_over(vms) == []


def test_a_refused_creation_leaves_nothing(vms: Vms) -> None:
    for fields in ({"name": ""}, {"image": "nothing"}, {"vcpu": 10_000}, {"vcpu": 21}):
        with pytest.raises(CasemateError):
            vms.create(wanted(ports=[rows.port(free_port())], **fields))

    assert left_over(vms) == []


def test_a_vm_that_is_created_stopped_has_a_folder_and_no_process(vms: Vms) -> None:
    vm_id = vms.create(wanted(stopped=True))

    assert (row(vms, vm_id).wished, row(vms, vm_id).observed) == (Wished.STOPPED, Observed.ABSENT)
    assert (vms.config.run_path / vm_id).is_dir()
    assert live(vms, vm_id) is None


# End ------------------------------------------------------------------------------------------------


def test_a_stopped_vm_has_no_process_and_says_how_it_ended(vms: Vms) -> None:
    vm_id = vms.create(wanted())

    vms.stop(vm_id)

    vm = row(vms, vm_id)
    assert (vm.wished, vm.observed, vm.pid) == (Wished.STOPPED, Observed.ABSENT, None)
    assert vm.stopped_ms is not None
    assert live(vms, vm_id) is None
    assert (vm.events[-1].event, vm.events[-1].body) == ("vmm.stop", "exit code 0")
    vms.stop(vm_id)
    assert events(vms, vm_id) == ["vmm.start", "vmm.stop"]


def test_a_vm_that_resists_is_killed(vms: Vms, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reconcile, "STOP_GRACE_S", 0.1)
    rows.behave(vms.config.run_path, ignore_sigterm=True)
    vm_id = vms.create(wanted())

    vms.stop(vm_id)

    assert row(vms, vm_id).events[-1].body == "killed by SIGKILL"
    assert live(vms, vm_id) is None


def test_a_vm_that_died_is_buried_with_its_reason(vms: Vms) -> None:
    vm_id = vms.create(wanted())
    found = live(vms, vm_id)
    assert found is not None

    os.kill(found.pid, signal.SIGKILL)
    until(lambda: live(vms, vm_id) is None)
    vms.reconciler.one(vm_id)

    vm = row(vms, vm_id)
    assert (vm.wished, vm.observed) == (Wished.RUNNING, Observed.ABSENT)
    assert vm.events[-1].event == "vmm.exit"
    assert vm.events[-1].body == "killed by SIGKILL; last console line: hello from 0 ports"
    vms.reconciler.one(vm_id)
    assert events(vms, vm_id) == ["vmm.start", "vmm.exit"]


def test_qemus_last_words_are_told_and_those_of_an_earlier_boot_are_not(vms: Vms) -> None:
    vm_id = vms.create(wanted())
    log = vms.reconciler.workdir(vm_id).log("stderr")
    bodies = []
    for words in ("qemu: bus error\n", ""):
        with open(log, "a") as said:
            said.write(words)
        found = live(vms, vm_id)
        assert found is not None
        os.kill(found.pid, signal.SIGKILL)
        until(lambda: live(vms, vm_id) is None)
        vms.reconciler.one(vm_id)
        bodies.append(row(vms, vm_id).events[-1].body)
        vms.start(vm_id)

    assert bodies[0].endswith("; QEMU said: qemu: bus error")
    assert "bus error" not in bodies[1]


def test_a_vm_that_died_is_started_again_when_asked(vms: Vms) -> None:
    vm_id = vms.create(wanted())
    found = live(vms, vm_id)
    assert found is not None
    os.kill(found.pid, signal.SIGKILL)
    until(lambda: live(vms, vm_id) is None)

    vms.start(vm_id)

    again = live(vms, vm_id)
    assert again is not None
    assert again != found
    assert events(vms, vm_id) == ["vmm.start", "vmm.exit", "vmm.start"]


def test_a_failed_boot_is_told_by_its_own_console_alone(vms: Vms) -> None:
    vm_id = vms.create(wanted())
    log = vms.reconciler.workdir(vm_id).serial_log
    with open(log, "a") as console:
        console.write("casemate: boot failed: \x1b[1mroot hash differs\x1b[0m\r\nreboot: off\r\n")
    vms.stop(vm_id)
    assert row(vms, vm_id).boot_error == "root hash differs"

    vms.start(vm_id)
    assert row(vms, vm_id).boot_error == ""
    vms.stop(vm_id)

    assert row(vms, vm_id).boot_error == ""


@pytest.mark.parametrize(
    ("log", "line"),
    [
        (None, ""),
        (b"", ""),
        (b"===== boot @ 2026-01-01T00:00:00Z =====\n", ""),
        (b"one\r\ntwo\r\n\r\n", "two"),
        (b"old\n===== boot @ 2026-01-01T00:00:00Z =====\nnew\n", "new"),
        (b"said\n===== rotated 5 bytes to serial.log.1 @ 2026-01-01T00:00:00Z =====\n", "said"),
        (b"casemate: boot failed: no disk\nlater\n", "casemate: boot failed: no disk"),
        (b"\x1b[31mred\x1b]0;title\x07\n", "red"),
        (b"x" * 3_000_000, "x" * 500),
        (b"\xff\n", "\ufffd"),
    ],
)
def test_the_last_words_of_a_console(tmp_path: Path, log: bytes | None, line: str) -> None:
    if log is not None:
        (tmp_path / "serial.log").write_bytes(log)

    assert reconcile.console_line(WorkDir(tmp_path)) == line


# Removal -------------------------------------------------------------------------------------------


def test_a_removed_vm_leaves_nothing(vms: Vms) -> None:
    vm_id = vms.create(wanted(ports=[rows.port(free_port())]))

    vms.remove(vm_id)
    vms.remove(vm_id)
    info = vms.info(vm_id)
    assert info is not None
    assert info["status"] == "removing"
    vms.reconciler.one(vm_id)

    assert left_over(vms) == []
    with pytest.raises(NotFound):
        vms.remove(vm_id)


@pytest.mark.parametrize("verb", ["start", "stop", "shutdown"])
def test_a_vm_being_removed_takes_no_other_wish(vms: Vms, verb: str) -> None:
    vm_id = vms.create(wanted(stopped=True))
    vms.remove(vm_id)

    with pytest.raises(Invalid, match=r"is being removed|is not running"):
        getattr(vms, verb)(vm_id)

    assert row(vms, vm_id).wished == Wished.REMOVED


def test_nothing_is_deleted_under_a_process_that_lives(
    vms: Vms, monkeypatch: pytest.MonkeyPatch
) -> None:
    vm_id = vms.create(wanted())
    vms.remove(vm_id)
    monkeypatch.setattr(process, "end", lambda *_, **__: False)

    with pytest.raises(Unavailable, match="still ending"):
        vms.reconciler.one(vm_id)

    assert (vms.config.run_path / vm_id / "hda.img").exists()
    assert row(vms, vm_id).wished == Wished.REMOVED
    monkeypatch.undo()
    vms.reconciler.one(vm_id)
    assert left_over(vms) == []


def test_a_removal_cut_off_anywhere_is_finished_by_the_next_look(
    vms: Vms, monkeypatch: pytest.MonkeyPatch
) -> None:
    cuts = 0
    while True:
        vm_id = vms.create(wanted(stopped=True))
        vms.reconciler.workdir(vm_id).share("a", "x")
        vms.remove(vm_id)
        left = [cuts]
        with monkeypatch.context() as patch:
            for name in ("unlink", "rmdir"):
                cut(patch, name, left)
            try:
                vms.reconciler.one(vm_id)
                break
            except RuntimeError:
                cuts += 1
        if vms.info(vm_id) is None:
            # At the very end: an empty lock file, which the next start of the service takes away.
            assert left_over(vms) == [vms.reconciler.workdir(vm_id).lock]
            Background(vms)._recover()
        else:
            vms.reconciler.one(vm_id)
        assert left_over(vms) == []

    assert cuts >= 4
    assert left_over(vms) == []


def cut(patch: pytest.MonkeyPatch, name: str, left: list[int]) -> None:
    real = getattr(os, name)

    def counted(*args: Any, **kwargs: Any) -> None:
        if left[0] == 0:
            raise RuntimeError("cut off")
        left[0] -= 1
        real(*args, **kwargs)

    patch.setattr(os, name, counted)


# Recovery --------------------------------------------------------------------------------------------


def test_a_running_vm_is_left_alone(vms: Vms) -> None:
    vm_id = vms.create(wanted())
    before = live(vms, vm_id)

    vms.reconciler.one(vm_id)
    vms.start(vm_id)

    assert live(vms, vm_id) == before
    assert events(vms, vm_id) == ["vmm.start"]


@pytest.mark.parametrize(
    "forgotten",
    [
        {"observed": Observed.STARTING, "pid": None, "pid_start": None},
        {"observed": Observed.ABSENT, "pid": None, "pid_start": None},
    ],
    ids=["starting", "absent"],
)
def test_a_process_that_the_record_does_not_know_is_adopted(
    vms: Vms, monkeypatch: pytest.MonkeyPatch, forgotten: dict[str, Any]
) -> None:
    vm_id = vms.create(wanted())
    before = row(vms, vm_id)
    change(vms, vm_id, started_ms=None, stopped_ms=5, boot_error="old", **forgotten)

    with monkeypatch.context() as later:
        hour_s, clock = 3600, time.clock_gettime
        later.setattr(time, "time", lambda: clock(time.CLOCK_REALTIME) + hour_s)
        later.setattr(time, "time_ns", lambda: int(time.time() * 1e9))
        later.setattr(time, "clock_gettime", lambda which: clock(which) + hour_s)
        vms.reconciler.one(vm_id)

    vm = row(vms, vm_id)
    assert (vm.observed, vm.pid) == (Observed.ALIVE, before.pid)
    assert events(vms, vm_id) == ["vmm.start", "vmm.adopt"]
    # It runs since it was started, not since it was found.
    assert vm.started_ms is not None and before.started_ms is not None
    assert abs(vm.started_ms - before.started_ms) < 60_000
    assert (vm.stopped_ms, vm.boot_error) == (None, "")
    assert vm.boot_progress == "running"


def test_the_guest_of_an_image_without_a_read_only_share_reports_nothing(
    vms: Vms, config: Config
) -> None:
    rows.image(config.image.path, "old-0.5.0", shared_ro=False)

    vm_id = vms.create(wanted(image="old-0.5.0"))

    assert row(vms, vm_id).boot_progress == "N/A"


def test_the_console_of_a_dev_image_has_a_terminal_with_a_name(vms: Vms, config: Config) -> None:
    rows.image(config.image.path, "dev-0.5.4", is_dev=True)

    plain, dev = vms.create(wanted()), vms.create(wanted(image="dev-0.5.4"))

    workdir = vms.reconciler.workdir(dev)
    assert workdir.serial_pty.readlink() == Path("/dev/pts/4096")
    assert f"pty,id=com0,logfile={workdir.serial_log},logappend=on" in vms.command(dev)
    assert not vms.reconciler.workdir(plain).serial_pty.is_symlink()
    vms.stop(dev)
    vms.start(dev)
    assert workdir.serial_pty.is_symlink()


def test_a_sweep_that_saw_a_vm_between_wish_and_start_schedules_nothing(vms: Vms) -> None:
    vm_id = vms.create(wanted(stopped=True))
    change(vms, vm_id, wished=Wished.RUNNING, restarts=1, next_restart_ms=5)

    vms.reconciler.one(vm_id, start=True)

    assert (row(vms, vm_id).restarts, row(vms, vm_id).next_restart_ms) == (0, None)


def test_a_retry_keeps_its_count(vms: Vms) -> None:
    vm_id = vms.create(wanted(stopped=True))
    change(vms, vm_id, wished=Wished.RUNNING, restarts=1, next_restart_ms=5)

    vms.reconciler.one(vm_id, start=True, retry=True)

    assert (row(vms, vm_id).restarts, row(vms, vm_id).next_restart_ms) == (1, 5)
    assert row(vms, vm_id).observed == Observed.ALIVE


def test_a_start_cut_off_before_its_process_is_done_again(vms: Vms) -> None:
    vm_id = vms.create(wanted(stopped=True))
    change(vms, vm_id, wished=Wished.RUNNING, observed=Observed.STARTING)

    vms.reconciler.one(vm_id)

    assert row(vms, vm_id).observed == Observed.ALIVE
    assert live(vms, vm_id) is not None


def test_a_stop_cut_off_before_its_end_is_done_again(vms: Vms) -> None:
    vm_id = vms.create(wanted())
    change(vms, vm_id, wished=Wished.STOPPED)

    vms.reconciler.one(vm_id)

    assert row(vms, vm_id).observed == Observed.ABSENT
    assert live(vms, vm_id) is None


def test_a_second_look_changes_nothing(vms: Vms) -> None:
    vm_id = vms.create(wanted())
    found = live(vms, vm_id)
    assert found is not None
    os.kill(found.pid, signal.SIGKILL)
    until(lambda: live(vms, vm_id) is None)
    vms.reconciler.one(vm_id)
    before = vms.info(vm_id)

    vms.reconciler.one(vm_id)

    assert before is not None
    after = vms.info(vm_id)
    assert after is not None
    assert {**after, "exited_at": ""} == {**before, "exited_at": ""}


def test_a_vm_that_nobody_knows_is_not_found_and_gets_no_folder(vms: Vms) -> None:
    with pytest.raises(NotFound, match="VM nobody not found"):
        vms.reconciler.one("nobody")

    assert not (vms.config.run_path / "nobody").exists()


def test_a_vm_removed_while_we_waited_for_its_lock_is_not_found(vms: Vms) -> None:
    vm_id = vms.create(wanted(stopped=True))
    workdir = vms.reconciler.workdir(vm_id)
    with ThreadPoolExecutor(1) as pool:
        with files.locked(workdir.lock):
            waiting = pool.submit(vms.reconciler.one, vm_id)
            until(lambda: opened(workdir.lock) == 2)
            with vms.database.writing() as session:
                session.delete(session.get_one(Vm, vm_id))
            workdir.remove()
        with pytest.raises(NotFound):
            waiting.result(30)

    assert left_over(vms) == []


def opened(path: Path) -> int:
    """How often this process has a file open."""
    return [os.path.realpath(fd) for fd in Path("/proc/self/fd").iterdir()].count(str(path))


def test_the_mirror_follows_the_row(vms: Vms) -> None:
    vm_id = vms.create(wanted())

    mirror = json.loads((vms.config.run_path / vm_id / "vm-manifest.json").read_text())

    assert (mirror["id"], mirror["image"], mirror["simulated_tee"]) == (
        vm_id,
        rows.IMAGE,
        "dstack-tdx",
    )
