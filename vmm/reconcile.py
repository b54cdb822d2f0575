"""Makes the host match the record of one VM: the only code that starts, ends and deletes VMs.

Called by the verbs, by the sweep of the background process and at service start, always the same way.
One lock per VM, across processes, is held while it works, and every step may be repeated.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass

from sqlalchemy.orm import Session

from core import faults, files
from core.config import Config
from core.errors import CasemateError, Invalid, NotFound, Unavailable, Unsupported
from core.logs import Decoder
from image import registry
from models.base import Database
from models.vm import Vm
from vmm import boot_files, disk, network, process, qemu, qmp, records, rotation
from vmm.host import Host
from vmm.lifecycle import Action, Observed, Wished, next_action
from vmm.workdir import WorkDir

logger = logging.getLogger(__name__)

QMP_GREETING_S = 15.0
STOP_GRACE_S = 3.0
LOCK_PATIENCE_S = 60.0

_BOOT_FAILED = re.compile(r"casemate: boot failed: (.{1,500})")


@dataclass(frozen=True)
class Reconciler:
    """Works on the VMs of one data directory."""

    config: Config
    database: Database
    host: Host

    def one(self, vm_id: str, *, start: bool = False, retry: bool = False) -> None:
        """Does what is left to do for one VM until record and host agree.

        `start` asks for a VM to be started that should run and does not; without it such a VM is left
        as it ended; `retry` says that the restart policy asks, whose count then goes on.  Raises NotFound,
        or the refusal of the step that could not be done.
        """
        with self.locked(vm_id) as workdir:
            self._settle(vm_id, workdir)
            if start and self._ask_start(vm_id, retry):
                faults.point("start.asked")
                self._settle(vm_id, workdir)

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
                return
            logger.debug("VM %s: %s", vm_id, action)
            self._do(action, vm, workdir)

    @contextlib.contextmanager
    def locked(self, vm_id: str) -> Iterator[WorkDir]:
        """Holds the lock of one existing VM; NotFound when there is none, or none any more."""
        self._row(vm_id)
        workdir = self.workdir(vm_id)
        self.config.run_path.mkdir(mode=0o700, parents=True, exist_ok=True)
        with files.locked(workdir.lock, timeout_s=LOCK_PATIENCE_S):
            try:
                self._row(vm_id)
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
                    self._observe_alive(vm.id, found, event="vmm.adopt")
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
            reason = error.message if isinstance(error, CasemateError) else type(error).__name__
            with self.database.writing() as session:
                vm = records.get(session, vm_id)
                vm.observed = Observed.ABSENT
                vm.boot_error = reason
                self._event(session, vm_id, "vmm.start_failed", reason)
            raise

    def _launch(self, vm_id: str, workdir: WorkDir) -> None:
        with self.database.reading() as session:
            vm = records.get(session, vm_id)
            # The deferred parts are read here, while the session is open.
            _ = vm.compose_file, vm.encrypted_env, vm.user_config
        image = self._bootable_image(vm)
        ports = tuple(records.port_of(lease) for lease in vm.ports)
        network.check_bindable(ports)
        boot_files.write(workdir, vm, image, self.config, self.host)
        disk.create_share(workdir.shared_image, workdir.shared)
        disk.create_data_disk(workdir.data_disk, vm.disk_gb, image.hda)
        rotation.rotate_large(workdir.serial_log, self.config.cvm.log)
        rotation.mark_boot(workdir.serial_log)
        for stale in ("qmp.sock", "host.sock", "guest.sock"):
            (workdir.path / stale).unlink(missing_ok=True)
        started = process.spawn(workdir.path, qemu.argv(self._machine(vm, image, workdir, ports)))
        faults.point("start.spawned")
        if not qmp.wait_for_greeting(
            workdir.path, lambda: process.is_alive(started), deadline_s=QMP_GREETING_S
        ):
            why = process.last_line(workdir.log("stderr"))
            raise process.StartFailed(f"QEMU ended at once: {why}")
        faults.point("start.greeted")
        self._observe_alive(vm_id, started, event="vmm.start")
        faults.point("start.observed")

    def _bootable_image(self, vm: Vm) -> registry.Image:
        if not vm.no_tee and not vm.simulated_tee:
            if not self.host.tee:
                raise Invalid(
                    "this host has no TDX or SEV-SNP; set no_tee for a development VM "
                    "(or cvm.simulate for simulated evidence)"
                )
            raise Unsupported(f"{self.host.tee} VMs are not available in this release")
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

    def _machine(
        self, vm: Vm, image: registry.Image, workdir: WorkDir, ports: tuple[network.Port, ...]
    ) -> qemu.Machine:
        settings = self.config.cvm.networking
        card = qemu.UserCard(
            mac=network.mac_address(vm.id, 0, settings.mac_prefix),
            ports=ports,
            net=settings.net,
            dhcp_start=settings.dhcp_start,
            restrict=settings.restrict,
        )
        return qemu.Machine(
            vm_id=vm.id,
            qemu=self.host.qemu,
            accel=self.host.accelerator.name,
            cpu=self.host.accelerator.cpu,
            vcpu=vm.vcpu,
            memory_mb=vm.memory_mb,
            kernel=image.kernel,
            initrd=image.initrd,
            cmdline=image.cmdline,
            rootfs=image.rootfs,
            data_disk=workdir.data_disk,
            share=qemu.Share("vhd", workdir.shared_image),
            serial_log=workdir.serial_log,
            qmp_socket=workdir.path / "qmp.sock",
            host_socket=workdir.host_socket,
            guest_socket=workdir.guest_socket,
            cards=(card,),
            sys_vendor=self.config.cvm.product.sys_vendor,
            product_name=self.config.cvm.product.product_name,
        )

    def _observe_alive(self, vm_id: str, found: process.Process, *, event: str) -> None:
        # One that has ended meanwhile is written down too: the next look buries it.
        with self.database.writing() as session:
            vm = records.get(session, vm_id)
            vm.observed = Observed.ALIVE
            vm.pid, vm.pid_start = found.pid, found.start
            vm.accel = self.host.accelerator.name
            vm.started_ms, vm.stopped_ms = found.started_ms, None
            vm.boot_progress, vm.boot_error, vm.shutdown_progress = "booting", "", ""
            accelerator = self.host.accelerator
            self._event(
                session, vm_id, event, f"pid {found.pid}, {accelerator.name} ({accelerator.why})"
            )

    # End -----------------------------------------------------------------------------------------

    def _stop(self, vm: Vm, workdir: WorkDir) -> None:
        found = process.find(workdir.path)
        if found is not None and not process.end(workdir.path, found, grace_s=STOP_GRACE_S):
            raise Unavailable(f"VM {vm.id} did not end; its process {found.pid} resists SIGKILL")
        self._bury(vm, workdir)

    def _bury(self, vm: Vm, workdir: WorkDir) -> None:
        # The runner writes the ending before it lets the lock go.
        process.wait_unlocked(workdir.path, 2)
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
            self._event(session, vm.id, "vmm.stop" if wished_end else "vmm.exit", body)
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
        faults.point("remove.ended")
        workdir.remove()
        faults.point("remove.deleted")
        with self.database.writing() as session:
            session.delete(records.get(session, vm.id))
        faults.point("remove.forgotten")
        workdir.lock.unlink(missing_ok=True)

    def _event(self, session: Session, vm_id: str, event: str, body: str) -> None:
        records.add_event(session, vm_id, event, body, self.config.event_buffer_size)


def console_line(workdir: WorkDir) -> str:
    """The last line that this boot's console said, or why the boot failed; without escape sequences."""
    try:
        with open(workdir.serial_log, "rb") as log:
            # A guest may write lines without end.
            log.seek(max(0, os.fstat(log.fileno()).st_size - 64 * 1024))
            text = Decoder(keep_ansi=False).feed(log.read(), final=True)
    except FileNotFoundError:
        return ""
    lines = rotation.since_boot(text).splitlines()
    failed = [line for line in lines if _BOOT_FAILED.search(line)]
    said = [line.strip() for line in lines if line.strip()]
    # The first failure is the reason; a program hit by the same bad block may add its own later.
    return (failed[:1] or said[-1:] or [""])[0][:500]
