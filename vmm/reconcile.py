"""Makes the host match the record of one VM: the only code that starts, ends and deletes VMs.

Called by the verbs, by the sweep of the background process and at service start, always the same way.
One lock per VM, across processes, is held while it works, and every step may be repeated.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from core import faults, files
from core.config import Config
from core.errors import (
    CasemateError,
    Conflict,
    Invalid,
    NotFound,
    Unavailable,
    Upstream,
    UpstreamTimeout,
)
from core.logs import Decoder
from image import registry
from models.base import Database, disk_trouble
from models.vm import Vm
from vmm import (
    boot_files,
    companion,
    disk,
    machine,
    network,
    process,
    qemu,
    qmp,
    records,
    revisions,
    rotation,
)
from vmm.host import Host
from vmm.lifecycle import Action, Observed, Wished, next_action
from vmm.workdir import NETWORKS, WorkDir

logger = logging.getLogger(__name__)

# A busy host is slow: only a QEMU that says nothing at all for this long is given up.
QMP_GREETING_S = 60.0
# Huge pages are cleared before QEMU speaks.
CLEAR_S_PER_GIB = 1.0
# After that a QEMU that lives counts as silent.
LISTEN_S = 5.0
STOP_GRACE_S = 3.0
LOCK_PATIENCE_S = 60.0

_TERMINAL = re.compile(r"pty:(/dev/pts/\d+)")
_BOOT_FAILED = re.compile(r"casemate: boot failed: (.{1,500})")


@dataclass(frozen=True)
class Reconciler:
    """Works on the VMs of one data directory."""

    config: Config
    database: Database
    host: Host

    def one(
        self,
        vm_id: str,
        *,
        start: bool = False,
        retry: bool = False,
        patience_s: float = LOCK_PATIENCE_S,
    ) -> None:
        """Does what is left to do for one VM until record and host agree.

        `start` asks for a VM to be started that should run and does not; without it such a VM is left
        as it ended; `retry` says that the restart policy asks, whose count then goes on.  Raises NotFound,
        Conflict when others hold the VM's lock for longer than `patience_s`, or the refusal of the step that
        could not be done.
        """
        with self.locked(vm_id, patience_s) as workdir:
            self._settle(vm_id, workdir)
            if start:
                self._begin(vm_id, workdir, retry)

    def start(self, vm_id: str) -> None:
        """Starts a VM because its owner asks; a refused start is no standing wish.

        The wish is made and taken back under the lock: of calls at once each has an answer of its own.
        """
        with self.locked(vm_id) as workdir:
            before = self._wish_running(vm_id)
            faults.point("start.wished")
            try:
                self._settle(vm_id, workdir)
                self._begin(vm_id, workdir, retry=False)
            except CasemateError:
                with self.database.writing() as session:
                    vm = records.get(session, vm_id)
                    if vm.wished == Wished.RUNNING:
                        vm.wished = before
                raise

    def _begin(self, vm_id: str, workdir: WorkDir, retry: bool) -> None:
        if self._ask_start(vm_id, retry):
            faults.point("start.asked")
            self._settle(vm_id, workdir)

    def _wish_running(self, vm_id: str) -> str:
        with self.database.writing() as session:
            vm = records.get(session, vm_id)
            records.refuse_removed(vm)
            records.refuse_unread(vm)
            before, vm.wished = vm.wished, Wished.RUNNING
            vm.restarts, vm.next_restart_ms = 0, None
            # The start writes its folder anew.
            vm.options = {k: v for k, v in vm.options.items() if k != "unreadable"}
            return before

    def _settle(self, vm_id: str, workdir: WorkDir) -> None:
        # No VM needs more steps than there are actions.
        for _ in Action:
            try:
                vm = self._row(vm_id)
            except NotFound:
                return  # removed by the step before
            lives = process.find(workdir.path) is not None
            action = next_action(vm.wished, vm.observed, lives)
            if action is Action.NONE:
                if lives:
                    self._relay(vm_id, workdir)
                return
            logger.debug("VM %s: %s", vm_id, action)
            self._do(action, vm, workdir)

    @contextlib.contextmanager
    def locked(self, vm_id: str, patience_s: float = LOCK_PATIENCE_S) -> Iterator[WorkDir]:
        """Holds the lock of one existing VM; NotFound when there is none, or none any more.

        Conflict when others hold it for longer than `patience_s`.
        """
        self._check_known(vm_id)
        workdir = self.workdir(vm_id)
        self.config.run_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.ExitStack() as stack:
            try:
                stack.enter_context(files.locked(workdir.lock, timeout_s=patience_s))
            except Conflict:
                raise Conflict(f"VM {vm_id} is busy with another call; try again soon") from None
            try:
                self._check_known(vm_id)
            except NotFound:  # removed while we waited
                workdir.lock.unlink(missing_ok=True)
                raise
            faults.point("lock.taken")
            workdir.make()
            faults.point("folder.made")
            yield workdir

    def workdir(self, vm_id: str) -> WorkDir:
        """The folder of a VM."""
        return WorkDir(self.config.run_path / vm_id)

    def _check_known(self, vm_id: str) -> None:
        with self.database.reading() as session:
            records.check_known(session, vm_id)

    def _row(self, vm_id: str) -> Vm:
        with self.database.reading() as session:
            return records.get(session, vm_id)

    def _do(self, action: Action, vm: Vm, workdir: WorkDir) -> None:
        match action:
            case Action.START:
                self._start(vm.id, workdir)
            case Action.STOP:
                self._stop(vm, workdir)
            case Action.ADOPT:
                if found := process.find(workdir.path):
                    # What its guest said meanwhile nobody heard.
                    self._observe_alive(vm.id, found, event="vmm.adopt", progress="running")
            case Action.BURY:
                self._bury(vm, workdir)
            case Action.REMOVE:
                self._remove(vm, workdir)

    def _ask_start(self, vm_id: str, retry: bool) -> bool:
        with self.database.writing() as session:
            vm = session.get(Vm, vm_id)
            if vm is None:
                return False  # removed just now
            if vm.wished != Wished.RUNNING or vm.observed != Observed.ABSENT:
                return False
            records.check_capacity(session, vm, self.config)
            records.assign_cid(session, vm, self.config)
            vm.observed = Observed.STARTING
            if not retry:
                # A sweep may have seen it after the wish and before this, and thought that it had ended.
                vm.restarts, vm.next_restart_ms = 0, None
            return True

    # Start ---------------------------------------------------------------------------------------

    def _start(self, vm_id: str, workdir: WorkDir) -> None:
        try:
            self._launch(vm_id, workdir)
        except BaseException as error:
            found = process.find(workdir.path)
            if found is not None:
                process.end(workdir.path, found, grace_s=0)
            # A QEMU that ended by itself leaves its runner a moment to write that down.
            process.wait_unlocked(workdir.path, 2)
            companion.end_all(workdir.path)
            reason = error.message if isinstance(error, CasemateError) else type(error).__name__
            if trouble := disk_trouble(error):
                reason = f"the disk of this host {trouble}"
            self._observe_failed(vm_id, reason)
            raise

    def _observe_failed(self, vm_id: str, reason: str) -> None:
        # On a full disk even this may fail; what the start met is then told all the same.
        with contextlib.suppress(OperationalError), self.database.writing() as session:
            vm = records.get(session, vm_id)
            vm.observed = Observed.ABSENT
            vm.boot_error = reason
            self._event(session, vm_id, "vmm.start_failed", reason)

    def _launch(self, vm_id: str, workdir: WorkDir) -> None:
        with self.database.reading() as session:
            vm = records.get(session, vm_id)
            # The deferred parts are read here, while the session is open.
            _ = vm.compose_file, vm.encrypted_env, vm.user_config
        image = self._bootable_image(vm)
        made = machine.plan(vm, image, workdir, self.config, self.host)
        self._check_gpus(vm, made)
        companion.end_all(workdir.path)
        network.check_bindable(made.bound)
        self._prepare(workdir, vm, image, made)
        for name, argv in made.companions.items():
            folder = workdir.companion(name, made.machine.run_as)
            companion.start(folder, argv, companion.socket_of(folder))
        started = process.spawn(workdir.path, qemu.argv(made.machine))
        faults.point("start.spawned")
        patience_s = QMP_GREETING_S + CLEAR_S_PER_GIB * sum(
            node.memory_gib for node in made.machine.numa
        )
        if not qmp.wait_for_greeting(
            workdir.path, lambda: process.is_alive(started), deadline_s=patience_s
        ):
            why = error_line(workdir) or "no message"
            raise process.StartFailed(f"QEMU ended at once: {why}")
        if made.machine.is_dev:
            _link_console(workdir)
        self._relay(vm_id, workdir)
        faults.point("start.greeted")
        # Guests of images that have no such disk report nothing.
        progress = "booting" if image.shared_ro else "N/A"
        self._observe_alive(vm_id, started, event="vmm.start", progress=progress)
        faults.point("start.observed")

    def _prepare(self, workdir: WorkDir, vm: Vm, image: registry.Image, made: machine.Plan) -> None:
        """Puts into a VM's folder what its QEMU opens, and what is told of this start."""
        measured = machine.vm_config(vm, image, made, self.config, self.host)
        workdir.drop_unfinished()
        boot_files.write(workdir, vm, made, measured, self.config)
        if made.machine.share.mode == "vhd":
            disk.create_share(workdir.shared_image, workdir.shared)
        disk.create_data_disk(workdir.data_disk, vm.disk_gb, image.hda)
        rotation.rotate_large(workdir.serial_log, self.config.cvm.log)
        for name in ("serial", "stderr"):
            rotation.mark_boot(workdir.log(name))
        workdir.begin_boot(made.machine.cid)
        workdir.mirror(NETWORKS, made.networks)
        if made.machine.run_as:
            registry.open_to_all(image)
            workdir.open_to(made.machine.run_as)

    def _check_gpus(self, vm: Vm, made: machine.Plan) -> None:
        """Conflict naming the VM that holds one of the GPUs: QEMU's own words would name a file."""
        if not made.machine.gpus:
            return
        with self.database.reading() as session:
            others = session.scalars(
                select(Vm.id).where(Vm.observed != Observed.ABSENT, Vm.id != vm.id)
            ).all()
        for other in others:
            command = " ".join(process.launched(self.workdir(other).path))
            for gpu in made.machine.gpus:
                if f"vfio-pci,host={gpu.slot}," in command:
                    raise Conflict(f"gpus: {gpu.slot} is in use by VM {other}; stop that VM first")

    def _relay(self, vm_id: str, workdir: WorkDir) -> None:
        """Makes the relayed host ports of a VM, as it was started, lead to its leased address."""
        try:
            launched = json.loads((workdir.path / NETWORKS).read_bytes())
            ports = [network.Port(*each) for each in launched["relayed"]]
            macs = [each["mac"] for each in launched["networks"] if each["mode"] == "bridge"]
        except (OSError, ValueError, KeyError, TypeError):
            return  # started by a release that had no relay
        if ports:
            with self.database.reading() as session:
                target = records.leased_address(session, vm_id, macs)
            companion.relay(workdir.path, ports, target)

    def _bootable_image(self, vm: Vm) -> registry.Image:
        machine.platform(vm, self.host)
        try:
            image = registry.load(self.config.image.path, vm.image)
        except NotFound as error:  # which is said of VMs alone
            raise Invalid(error.message) from None
        if changed := registry.changed_files(image):
            raise Invalid(
                f"image {vm.image}: {', '.join(changed)} changed since it was built; "
                "remove the image and build or fetch it again"
            )
        return image

    def _observe_alive(
        self, vm_id: str, found: process.Process, *, event: str, progress: str
    ) -> None:
        # One that has ended meanwhile is written down too: the next look buries it.
        with self.database.writing() as session:
            vm = records.get(session, vm_id)
            vm.observed = Observed.ALIVE
            vm.pid, vm.pid_start = found.pid, found.start
            vm.accel = self.host.accelerator.name
            vm.started_ms, vm.stopped_ms = found.started_ms, None
            vm.silent_ms = None
            vm.boot_progress, vm.boot_error, vm.shutdown_progress = progress, "", ""
            accelerator = self.host.accelerator
            self._event(
                session, vm_id, event, f"pid {found.pid}, {accelerator.name} ({accelerator.why})"
            )

    def listen(self, vm_id: str) -> bool:
        """Asks a live VM's QEMU whether it is there, and notes since when it does not answer."""
        folder = self.workdir(vm_id).path
        try:
            qmp.execute(folder, "query-status", deadline_s=LISTEN_S)
            answers = True
        except (Upstream, UpstreamTimeout):
            answers = False
        with self.database.reading() as session:
            vm = session.get(Vm, vm_id)
            if vm is None or answers == (vm.silent_ms is None):
                return answers
        with self.database.writing() as session:
            vm = session.get(Vm, vm_id)
            # One that has ended is not silent but gone: burying it is another matter.
            if vm is None or vm.observed != Observed.ALIVE or process.find(folder) is None:
                return answers
            if answers:
                vm.silent_ms = None
            elif vm.silent_ms is None:
                vm.silent_ms = records.now_ms()
                self._event(session, vm_id, "vmm.silent", "QEMU does not answer its monitor")
        return answers

    # End -----------------------------------------------------------------------------------------

    def _stop(self, vm: Vm, workdir: WorkDir) -> None:
        found = process.find(workdir.path)
        if found is not None and not process.end(workdir.path, found, grace_s=STOP_GRACE_S):
            raise Unavailable(f"VM {vm.id} did not end; its process {found.pid} resists SIGKILL")
        self._bury(vm, workdir)

    def _bury(self, vm: Vm, workdir: WorkDir) -> None:
        # The runner writes the ending, to a disk that may be busy, before it lets the lock go.
        process.wait_unlocked(workdir.path, 15)
        companion.end_all(workdir.path)
        faults.point("stop.ended")
        ended = process.ending(workdir.path) or process.Ending(None, None, records.now_ms())
        console = console_line(workdir)
        failed = _BOOT_FAILED.search(console)
        wished_end = vm.wished != Wished.RUNNING
        with self.database.writing() as session:
            row = records.get(session, vm.id)
            row.observed = Observed.ABSENT
            row.pid = row.pid_start = None
            row.stopped_ms = ended.at_ms
            if failed:
                row.boot_error = failed[1].strip()
            body = str(ended)
            if not wished_end:
                body += f"; last console line: {console or 'none'}"
                if said := error_line(workdir):
                    body += f"; QEMU said: {said}"
            self._event(session, vm.id, "vmm.stop" if wished_end else "vmm.exit", body)
        boot_files.mirror_state(workdir, row)
        faults.point("stop.buried")

    def _remove(self, vm: Vm, workdir: WorkDir) -> None:
        found = process.find(workdir.path)
        if found is not None:
            ended = process.end(workdir.path, found, grace_s=STOP_GRACE_S)
        else:
            ended = process.wait_unlocked(workdir.path, STOP_GRACE_S)
        if not ended:
            # Files under a live QEMU stay; the sweep tries again.
            raise Unavailable(f"VM {vm.id} is still ending; it is removed when its process is gone")
        companion.end_all(workdir.path)
        faults.point("remove.ended")
        workdir.remove()
        faults.point("remove.deleted")
        with self.database.writing() as session:
            gone = records.get(session, vm.id)
            revisions.forget(session, gone)
            session.delete(gone)
        faults.point("remove.forgotten")
        workdir.lock.unlink(missing_ok=True)

    def _event(self, session: Session, vm_id: str, event: str, body: str) -> None:
        records.add_event(session, vm_id, event, body, self.config.event_buffer_size)


def _link_console(workdir: WorkDir) -> None:
    """Puts a name where a person may type to the shell of a dev image: QEMU numbers its terminals itself."""
    for device in qmp.execute(workdir.path, "query-chardev"):
        if device["label"] == "com0" and (found := _TERMINAL.fullmatch(device["filename"])):
            workdir.serial_pty.symlink_to(found[1])


def console_line(workdir: WorkDir) -> str:
    """The last line that this boot's console said, or why the boot failed; without escape sequences."""
    said = _lines_since_boot(workdir.serial_log)
    failed = [line for line in said if _BOOT_FAILED.search(line)]
    # The first failure is the reason; a program hit by the same bad block may add its own later.
    return (failed[:1] or said[-1:] or [""])[0][:500]


def error_line(workdir: WorkDir) -> str:
    """The last line that this boot's QEMU wrote to standard error, or ""."""
    return (_lines_since_boot(workdir.log("stderr"))[-1:] or [""])[0][:500]


def _lines_since_boot(path: Path) -> list[str]:
    try:
        with open(path, "rb") as log:
            # A guest may write lines without end.
            log.seek(max(0, os.fstat(log.fileno()).st_size - 64 * 1024))
            text = Decoder(keep_ansi=False).feed(log.read(), final=True)
    except FileNotFoundError:
        return []
    lines = (line.strip() for line in rotation.since_boot(text).splitlines())
    return [line for line in lines if line]
