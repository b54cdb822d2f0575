"""The verbs of the VM manager: the only module of vmm that other areas may import.

A verb writes the wish in one transaction and lets vmm/reconcile.py make the host match it.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from attest import compose
from core import faults, http, logs, prpc
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
from image import registry
from models.account import Project
from models.base import Database
from models.vm import Vm
from vmm import (
    app_ids,
    boot_files,
    channel,
    companion,
    disk,
    gpu,
    hostfwd,
    listing,
    network,
    pci,
    process,
    processes,
    qmp,
    records,
    registration,
    revisions,
    simulation,
)
from vmm.change import RESOURCES, changed
from vmm.configuration import check, check_compose, check_name
from vmm.description import describe, status_of
from vmm.host import Host
from vmm.lifecycle import Observed, Wished, status
from vmm.reconcile import Reconciler
from vmm.reload import Reload
from vmm.revisions import Cause
from vmm.rotation import segment
from vmm.schemas import Change, Configuration, PublicKeyResponse, StatusQuery

# ShutdownVm: how long the agent may take before the power button is pressed (vmm.md section 4).
AGENT_SHUTDOWN_S = 3.0
# StopVm answers within 10 s (vmm.md section 4): this long for the lock, the rest for QEMU.
STOP_PATIENCE_S = 6.0
KMS_S = 10.0
LOG_CHANNELS = ("serial", "stdout", "stderr")
HEARTBEAT = "[vmm heartbeat]\n"
NOBODY = records.Owner()
UNTOLD = Cause()


@dataclass(frozen=True)
class Vms:
    """The VMs of one data directory."""

    config: Config
    database: Database
    host: Host

    @property
    def reconciler(self) -> Reconciler:
        """What makes the host match the records."""
        return Reconciler(self.config, self.database, self.host)

    # Verbs ---------------------------------------------------------------------------------------

    def create(
        self,
        wanted: Configuration,
        owner: records.Owner = NOBODY,
        publish: Sequence[int] = (),
        cause: Cause | None = None,
        beside: Callable[[Session, str], None] = lambda session, vm_id: None,
    ) -> str:
        """Makes a VM, starts it unless `stopped`, and returns its id; on failure nothing remains.

        It belongs to project main where no owner is named.  To each TCP port of the guest in `publish` a free host
        port is led.  `beside` writes what the caller keeps of the VM, so that one is never there without the other.
        """
        checked = check(wanted, self.config, host_tee=self.host.tee, root=self.host.root)
        faults.point("create.checked")
        registration.register(self.config.kms, checked.app_id, wanted.compose_file)
        vm = records.new_row(str(uuid.uuid4()), wanted, checked, owner)
        with self.database.writing() as session:
            session.add(vm)
            records.lease_ports(session, vm, checked.ports)
            records.lease_own_ports(session, vm, publish, self.config.cvm.port_mapping.address)
            records.assign_cid(session, vm, self.config)
            if checked.warning:
                keep = self.config.event_buffer_size
                records.add_event(session, vm.id, "vmm.warning", checked.warning, keep)
            revisions.note(session, vm, cause or Cause(owner.user_id))
            beside(session, vm.id)
            faults.point("create.leased")
            if not wanted.stopped:
                records.check_capacity(session, vm, self.config)
            faults.point("create.inserted")
        faults.point("create.committed")
        try:
            if wanted.stopped:
                with self.reconciler.locked(vm.id) as workdir:
                    boot_files.record(workdir, vm)
            else:
                self.reconciler.one(vm.id, start=True)
        except BaseException:
            self._forget(vm.id)
            raise
        faults.point("create.unanswered")
        return vm.id

    def draw_app_id(self, project_id: str, nonce: int | None = None) -> str:
        """An app id that no other app of any project has, 40 hex digits; NotFound without the project.

        A `nonce` that the caller names is taken instead of the next; whether its app is there already is not
        looked at.
        """
        with self.database.writing() as session:
            project = session.get(Project, project_id)
            if project is None:
                raise NotFound("there is no such project")
            drawn = project.next_nonce if nonce is None else nonce
            project.next_nonce = max(project.next_nonce, drawn + 1)
            return app_ids.drawn(project.address, drawn)

    def app_id_of(self, project_id: str, nonce: int) -> str:
        """The app id that a nonce of a project gives, without drawing it; NotFound without the project."""
        with self.database.reading() as session:
            project = session.get(Project, project_id)
        if project is None:
            raise NotFound("there is no such project")
        return app_ids.drawn(project.address, nonce)

    def next_app_ids(self, project_id: str, count: int) -> list[tuple[int, str]]:
        """The nonces and app ids that a project draws next; NotFound without the project."""
        with self.database.reading() as session:
            project = session.get(Project, project_id)
            if project is None:
                raise NotFound("there is no such project")
            nonces = range(project.next_nonce, project.next_nonce + count)
            return [(nonce, app_ids.drawn(project.address, nonce)) for nonce in nonces]

    def start(self, vm_id: str) -> None:
        """Starts a VM; a running one stays as it is."""
        self.reconciler.start(vm_id)

    def stop(self, vm_id: str) -> None:
        """Ends a VM by force; a stopped one stays as it is.

        Whoever holds the VM's lock for long ends it when he is ready, and if not he then the sweep.
        """
        self._wish(vm_id, Wished.STOPPED)
        faults.point("stop.wished")
        with contextlib.suppress(Conflict):
            self.reconciler.one(vm_id, patience_s=STOP_PATIENCE_S)

    def shutdown(self, vm_id: str) -> None:
        """Asks a VM to power off: its agent first, then the power button.

        Unavailable when neither can be reached.
        """
        self._running(vm_id)
        workdir = self.reconciler.workdir(vm_id).path
        try:
            channel.ask(workdir, "Shutdown", {}, begin_s=AGENT_SHUTDOWN_S, whole_s=AGENT_SHUTDOWN_S)
        except (Upstream, UpstreamTimeout):
            try:
                qmp.execute(workdir, "system_powerdown")
            except (Upstream, UpstreamTimeout) as error:
                raise Unavailable(
                    f"neither the guest agent nor QEMU took the request: {error.message}"
                ) from None
        faults.point("shutdown.asked")
        self._wish(vm_id, Wished.SHUTDOWN, only_from=Wished.RUNNING)

    def update(
        self,
        change: Change,
        publish: Sequence[int] | None = None,
        cause: Cause = UNTOLD,
        beside: Callable[[Session], None] = lambda session: None,
    ) -> str:
        """Changes a VM, all or nothing; the app id of the new compose text, or "" when none was given.

        What is changed while the VM runs takes effect at its next start.  With `publish` only these TCP ports of the
        guest keep, or get, a host port of the service's choosing.  `beside`, which finds the VM as it was, writes what the
        caller keeps of it, or refuses.
        """
        with self.reconciler.locked(change.id) as workdir:
            with self.database.reading() as session:
                vm = records.get(session, change.id)
                records.refuse_removed(vm)
                wanted = changed(vm, change)
            checked = check(wanted, self.config, host_tee=self.host.tee, root=self.host.root)
            with self.database.reading() as session:
                records.check_ports_free(session, vm.id, checked.ports)
            if change.compose_file:
                registration.register(self.config.kms, checked.app_id, wanted.compose_file)
            if wanted.disk_size > vm.disk_gb:
                # Before the commit: a disk that is larger than its record harms nobody.
                disk.grow_data_disk(workdir.data_disk, wanted.disk_size)
                faults.point("update.grown")
            with self.database.writing() as session:
                vm = records.get(session, change.id)
                records.refuse_removed(vm)
                beside(session)
                records.assign(vm, wanted, checked)
                records.lease_ports(session, vm, checked.ports)
                if publish is not None:
                    vm.ports = [
                        each for each in vm.ports if not each.own or each.vm_port in publish
                    ]
                    address = self.config.cvm.port_mapping.address
                    records.lease_own_ports(session, vm, publish, address)
                revisions.note(session, vm, cause)
                faults.point("update.assigned")
                keep = self.config.event_buffer_size
                records.add_event(session, vm.id, "vmm.update", ", ".join(_names(change)), keep)
            faults.point("update.committed")
            boot_files.record(workdir, vm)
        raw = change.compose_file.encode()
        return compose.app_id(raw).hex() if raw else ""

    def resize(self, change: Change) -> None:
        """Changes CPU, memory, disk or image of a stopped VM."""
        if not any((change.vcpu, change.memory, change.disk_size, change.image)):
            raise Invalid("at least one of vcpu, memory, disk_size and image must be given")
        self.update(change)

    def remove(self, vm_id: str) -> None:
        """Marks a VM for removal; the background process ends it and deletes what it had."""
        self._wish(vm_id, Wished.REMOVED)
        faults.point("remove.marked")

    def publish(self, vm_id: str, guest_port: int) -> int:
        """Leads a host port of the service's choosing to a TCP port of a guest, now and at its next starts.

        The port, the same one when it was led there before.  Upstream when QEMU refuses, Unsupported without a card in
        mode user.
        """
        with self.reconciler.locked(vm_id) as workdir:
            with self.database.writing() as session:
                vm = records.get(session, vm_id)
                records.refuse_removed(vm)
                address = self.config.cvm.port_mapping.address
                records.lease_own_ports(session, vm, [guest_port], address)
                port = records.own_ports(session, vm_id)[guest_port]
                is_up = vm.observed == Observed.ALIVE
            if is_up:
                try:
                    hostfwd.add(workdir.path, port)
                except CasemateError:
                    with self.database.writing() as session:
                        records.drop_own_port(session, vm_id, guest_port)
                    raise
            return port.host_port

    def withdraw(self, vm_id: str, guest_port: int) -> None:
        """Takes the host port of `publish` away, also from a VM that runs; nothing happens when there is none."""
        with self.reconciler.locked(vm_id) as workdir:
            with self.database.reading() as session:
                vm = records.get(session, vm_id)
                port = records.own_ports(session, vm_id).get(guest_port)
            if port is None:
                return
            if vm.observed == Observed.ALIVE:
                hostfwd.remove(workdir.path, port)
            # Only now: a port that is still open must not be given to another VM.
            with self.database.writing() as session:
                records.drop_own_port(session, vm_id, guest_port)

    def reload(self) -> dict[str, int]:
        """Reads the folders of all VMs again and believes them; imports those that have no record."""
        return Reload(self.reconciler).run()

    def report_lease(self, mac: str, ip: str) -> None:
        """Notes the address that DHCP gave to a card, and leads the host ports of its VM there."""
        card, address = network.check_mac(mac), network.check_guest_address(ip)
        with self.database.writing() as session:
            vm_id = records.vm_of_card(session, card, self.config.cvm.networking.mac_prefix)
            moved = records.lease_address(session, vm_id, card, address)
        for each in moved:
            self.reconciler.one(each)

    def stop_process(self, process_id: str) -> None:
        """Ends a process of `processes`: QEMU as StopVm does, one beside it at once."""
        vm_id, companion_name = processes.split(process_id)
        if not companion_name:
            self.stop(vm_id)
            return
        with self.reconciler.locked(vm_id) as workdir:
            companion.end(processes.folder(workdir.path, companion_name))

    def forget_process(self, process_id: str) -> None:
        """Drops the traces of a process that has ended."""
        vm_id, companion_name = processes.split(process_id)
        with self.reconciler.locked(vm_id) as workdir:
            processes.forget(processes.folder(workdir.path, companion_name))

    def delete_image(self, name: str) -> None:
        """Deletes an image; Conflict names a VM that uses it."""
        registry.check_name(name)
        # Under the write lock, so that no VM comes with it meanwhile.
        with self.database.writing() as session:
            user = session.scalar(select(Vm.name).where(Vm.image == name).limit(1))
            if user is not None:
                raise Conflict(f"image {name} is used by VM {user}; remove that VM first")
            registry.remove(self.config.image.path, name)

    # Questions -----------------------------------------------------------------------------------

    def status(self, query: StatusQuery) -> dict[str, Any]:
        """The VMs that match a query, oldest first, as StatusResponse prints them; each is read when it is taken."""
        found = self._listed(query)
        return {
            "total": next(found),
            "vms": found,
            "port_mapping_enabled": self.config.cvm.port_mapping.enabled,
        }

    def info(self, vm_id: str) -> dict[str, Any] | None:
        """One VM with its configuration, or None."""
        with self.database.reading() as session:
            vm = listing.one(session, vm_id)
        return None if vm is None else describe(vm, self.config, brief=False)

    def published(self, vm_id: str) -> dict[int, network.Port]:
        """The host ports that the service chose for a VM, by the guest's."""
        with self.database.reading() as session:
            return records.own_ports(session, vm_id)

    def project_of(self, vm_id: str) -> str | None:
        """The project that a VM belongs to, or None when there is no such VM."""
        with self.database.reading() as session:
            return session.scalar(select(Vm.project_id).where(Vm.id == vm_id))

    def compose_hash(self, name: str, compose_file: str) -> str:
        """The compose hash of a text, in hex, after a look at name and form."""
        check_name(name)
        return compose.compose_hash(check_compose(compose_file)).hex()

    def images(self) -> list[dict[str, Any]]:
        """The images that can be booted."""
        return [
            {
                "name": image.name,
                "description": image.metadata,
                "version": image.version,
                "is_dev": image.is_dev,
            }
            for image in registry.list_images(self.config.image.path)
        ]

    def meta(self) -> dict[str, Any]:
        """Addresses and limits that a client needs."""
        cvm, gateway = self.config.cvm, self.config.gateway
        return {
            "kms": {"url": next(iter(cvm.kms_urls), ""), "urls": cvm.kms_urls},
            "gateway": {
                "url": next(iter(cvm.gateway_urls), ""),
                "base_domain": gateway.base_domain,
                "port": gateway.port,
                "agent_port": gateway.agent_port,
                "urls": cvm.gateway_urls,
            },
            "resources": {
                "max_cvm_number": cvm.cid_pool_size,
                "max_allocable_vcpu": cvm.max_allocable_vcpu,
                "max_allocable_memory_in_mb": cvm.max_allocable_memory_in_mb,
            },
            "networking": {
                "supported_modes": network.supported_modes(cvm.networking),
                "default_mode": cvm.networking.mode,
                "default_bridge": cvm.networking.bridge,
            },
        }

    def gpus(self) -> dict[str, Any]:
        """The GPUs that VMs may be given, each with whether it is free, as ListGpusResponse prints them."""
        settings = self.config.cvm.gpu
        found = gpu.inventory(self.host.root, settings)
        names = pci.descriptions(found, self.host.root)
        held = self._held_commands() if found else ""
        return {
            "gpus": [
                {
                    "slot": each.slot,
                    "product_id": each.product_id,
                    "description": names[each.slot],
                    "is_free": each.driver == "vfio-pci" and f"host={each.slot}," not in held,
                }
                for each in found
            ],
            "allow_attach_all": settings.allow_attach_all,
        }

    def env_key(self, app_id: bytes, *, url: str = "", within_s: float = KMS_S) -> Any:
        """What the KMS, or the one at `url`, says of the key for an app's variables."""
        if len(app_id) != 20:
            raise Invalid.field("app_id", "must be 20 bytes (40 hex digits)")
        if not (url or self.config.kms_url):
            raise Invalid("this host knows no KMS; set kms_url in its configuration")
        asked = (url or self.config.kms_url).rstrip("/") + "/prpc/GetAppEnvEncryptPubKey?json"
        # A KMS signs its own certificate; what it says here is signed and checked by the caller.
        told = http.post_json(
            asked, {"app_id": app_id.hex()}, within_s=within_s, check_certificate=False
        )
        try:
            return prpc.load(PublicKeyResponse, told)
        except Invalid as error:
            raise Upstream(f"KMS: malformed answer: {error.message}") from None

    def processes(self) -> list[dict[str, Any]]:
        """The processes that belong to VMs, as SvListResponse prints them."""
        with self.database.reading() as session:
            rows = session.execute(select(Vm.id, Vm.name).order_by(Vm.created_ms, Vm.id)).all()
        return [
            found
            for vm_id, name in rows
            for found in processes.of_vm(self.reconciler.workdir(vm_id).path, name)
        ]

    @property
    def qemu_version(self) -> str:
        """The version of this host's QEMU."""
        return self.config.cvm.qemu_version or ".".join(map(str, self.host.qemu_version))

    def measured_device(self) -> str:
        """The device id (hex) in the evidence of this host's guests, where the service makes it; else ""."""
        is_simulated = self.config.cvm.simulate and not self.host.tee
        return simulation.device_id(self.config.tee_dir).hex() if is_simulated else ""

    def word(self, vm: Vm | SimpleNamespace) -> str:
        """The status word of a VM's row, which may have been read plainly."""
        return status_of(vm, self.config)

    def ask_guest(
        self,
        vm_id: str,
        method: str,
        answer: type[prpc.Message],
        params: dict[str, Any] | None = None,
        *,
        within_s: float = channel.WHOLE_S,
    ) -> Any:
        """Relays a call to the agent of a running VM and checks its answer."""
        self._running(vm_id)
        begin_s = min(channel.BEGIN_S, within_s)
        workdir = self.reconciler.workdir(vm_id).path
        told = channel.ask(workdir, method, params or {}, begin_s=begin_s, whole_s=within_s)
        try:
            checked = prpc.load(answer, told or {})
        except Invalid as error:
            raise Upstream(f"guest agent: malformed answer: {error.message}") from None
        if method == "Shutdown":
            # Its own word of it may get lost, and it would be started again.
            self._wish(vm_id, Wished.SHUTDOWN, only_from=Wished.RUNNING)
        return checked

    def log(
        self,
        vm_id: str,
        channel_name: str,
        lines: int,
        *,
        follow: bool = False,
        keep_ansi: bool = False,
        archived: int = 0,
        left: Callable[[], bool] = lambda: False,
    ) -> Iterator[str]:
        """The last lines of a VM's log, in pieces; with `follow` also what comes, until its removal.

        `archived` reads an older segment instead (1 is the newest of them), which nobody follows; `left` tells
        when the reader is gone.
        """
        self._check_known(vm_id)
        if channel_name not in LOG_CHANNELS:
            raise Invalid.field("ch", f"must be one of {', '.join(LOG_CHANNELS)}")
        workdir = self.reconciler.workdir(vm_id)
        path = workdir.log(channel_name)
        if archived:
            return logs.tail(segment(path, archived), lines, keep_ansi=keep_ansi)
        if not follow:
            return logs.tail(path, lines, keep_ansi=keep_ansi)
        return logs.follow(
            path,
            lines,
            keep_ansi=keep_ansi,
            ended=lambda: left() or not workdir.path.exists(),
            heartbeat=HEARTBEAT,
        )

    def command(self, vm_id: str) -> list[str]:
        """QEMU's exact command of the last start, empty before the first."""
        self._check_known(vm_id)
        return process.launched(self.reconciler.workdir(vm_id).path)

    # Steps ---------------------------------------------------------------------------------------

    def _listed(self, query: StatusQuery) -> Iterator[Any]:
        """How many VMs match, then each of the page: all of one moment, since one session reads them."""
        with self.database.reading() as session:
            total, page = listing.page(session, query)
            yield total
            for vm in page:
                yield describe(vm, self.config, brief=query.brief)

    def _check_known(self, vm_id: str) -> None:
        with self.database.reading() as session:
            records.check_known(session, vm_id)

    def _held_commands(self) -> str:
        with self.database.reading() as session:
            held = session.scalars(select(Vm.id).where(Vm.observed != Observed.ABSENT)).all()
        return "\n".join(
            ",".join(process.launched(self.reconciler.workdir(vm_id).path)) for vm_id in held
        )

    def _running(self, vm_id: str) -> None:
        with self.database.reading() as session:
            vm = records.get(session, vm_id)
        if vm.wished == Wished.REMOVED or vm.observed != Observed.ALIVE:
            raise Invalid(f"VM is not running (it is {status(vm.wished, vm.observed)})")

    def _wish(self, vm_id: str, wished: Wished | str, *, only_from: Wished | None = None) -> None:
        with self.database.writing() as session:
            vm = records.get(session, vm_id)
            if vm.wished == Wished.REMOVED and wished == Wished.REMOVED:
                return
            records.refuse_removed(vm)
            if only_from is None or vm.wished == only_from:
                vm.wished = wished
                vm.restarts, vm.next_restart_ms = 0, None

    def _forget(self, vm_id: str) -> None:
        """Takes back a VM whose creation failed; what cannot be done now is left to the sweep."""
        try:
            try:
                self._wish(vm_id, Wished.REMOVED)
            except OperationalError:
                # The disk is full: what was made of the VM gives the room that this word needs.
                self.reconciler.workdir(vm_id).remove()
                self._wish(vm_id, Wished.REMOVED)
            self.reconciler.one(vm_id)
        except (Unavailable, NotFound):
            return


def _names(change: Change) -> list[str]:
    # Names alone: values may be secret, and are large.
    flags = ("update_ports", "update_kms_urls", "update_gateway_urls", "update_networking")
    values = ("compose_file", "encrypted_env", "user_config", "gpus", *RESOURCES)
    named = [flag.removeprefix("update_") for flag in flags if getattr(change, flag)]
    named += [name for name in values if getattr(change, name)]
    return [*named, "no_tee"] if change.no_tee is not None else named
