"""ReloadVms: what the folders below run_path say wins over the records (vmm.md sections 5 and 6).

A folder copied from a dstack host is imported the same way.  What it says is checked like a request.
"""

from __future__ import annotations

import contextlib
import json
import logging
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from core import files, prpc
from core.errors import CasemateError, Invalid, NotFound
from core.prpc import Flag, Message, Nested, Repeated, Text, UInt32, UInt64
from models.account import MAIN_ID
from models.vm import Vm
from vmm import boot_files, configuration, disk, process, processes, records, revisions
from vmm.change import configuration_of
from vmm.lifecycle import Observed, Wished, is_at_rest
from vmm.reconcile import Reconciler
from vmm.schemas import Configuration, GpuConfig, PortMap
from vmm.workdir import WorkDir

logger = logging.getLogger(__name__)

MANIFEST = "vm-manifest.json"
MANIFEST_LIMIT = 1024**2
LOCK_S = 10.0
# A VM this young may be in the making: its folder comes after its record.
YOUNG_MS = 60_000
_ID = re.compile(r"[A-Za-z0-9_-]{1,64}")


class PortRule(Message):
    """A mapping as the manifest has it."""

    address = Text(1)
    protocol = Text(2)
    host_port = UInt32(3, data_key="from")
    vm_port = UInt32(4, data_key="to")


class NetworkCard(Message):
    """A card; dstack's older manifests name the bridge `bridge`."""

    mode = Text(1)
    bridge_name = Text(2)
    bridge = Text(3)


class Manifest(Message):
    """vm-manifest.json."""

    id = Text(1)
    name = Text(2)
    app_id = Text(3, optional=True)
    vcpu = UInt32(4)
    memory = UInt32(5)
    disk_size = UInt32(6)
    image = Text(7)
    port_map = Repeated(8, PortRule, most=100)
    created_at_ms = UInt64(9)
    hugepages = Flag(10)
    pin_numa = Flag(11)
    gpus = Nested(12, GpuConfig)
    kms_urls = Repeated(13, Text(0), most=16)
    gateway_urls = Repeated(14, Text(0), most=16)
    no_tee = Flag(15)
    simulated_tee = Text(16, optional=True)
    networks = Repeated(17, NetworkCard, most=8)
    networking = Nested(18, NetworkCard)
    volumes = Repeated(19, Text(0), most=64)


@dataclass(frozen=True)
class Reload:
    """One reading of all folders."""

    reconciler: Reconciler

    def run(self) -> dict[str, int]:
        """Imports, refreshes and drops VMs; the counts of ReloadVmsResponse."""
        known = self._known()
        counts = {"loaded": 0, "updated": 0, "removed": 0}
        present = set()
        for folder in self._folders():
            present.add(folder.name)
            if known.get(folder.name) == Wished.REMOVED:
                continue
            is_known = folder.name in known
            try:
                self._refresh(folder.name) if is_known else self._load(folder)
                counts["updated" if is_known else "loaded"] += 1
            except NotFound:
                continue  # removed meanwhile
            except (CasemateError, OSError) as error:
                reason = error.message if isinstance(error, CasemateError) else str(error.strerror)
                logger.warning("%s cannot be loaded: %s", folder, reason)
                self._mark(folder.name, reason, is_known)
        for vm_id in known.keys() - present:
            try:
                if known[vm_id] != Wished.REMOVED and self._drop(vm_id):
                    counts["removed"] += 1
            except NotFound:
                continue  # removed meanwhile
            except CasemateError as error:
                logger.warning("VM %s, whose folder is gone: %s", vm_id, error.message)
        return counts

    def _known(self) -> dict[str, str]:
        with self.reconciler.database.reading() as session:
            return records.wishes(session)

    def _folders(self) -> list[Path]:
        run_path = self.reconciler.config.run_path
        if not run_path.is_dir():
            return []
        return sorted(
            each
            for each in run_path.iterdir()
            if _ID.fullmatch(each.name) and each.is_dir() and not each.is_symlink()
        )

    def _refresh(self, vm_id: str) -> None:
        """Believes the folder of a VM that has a record."""
        config, host = self.reconciler.config, self.reconciler.host
        with self.reconciler.locked(vm_id) as workdir:
            with self.reconciler.database.reading() as session:
                vm = records.get(session, vm_id)
                before = configuration_of(vm)
            if (workdir.path / MANIFEST).exists():
                wanted = _read(workdir, before)
                checked = configuration.check(wanted, config, host_tee=host.tee, root=host.root)
                if wanted.disk_size < before.disk_size:
                    raise Invalid.field("disk_size", f"can only grow; it is {before.disk_size} GB")
                if wanted.disk_size > before.disk_size:
                    if not is_at_rest(vm.wished, vm.observed):
                        raise Invalid.field("disk_size", "can grow only while the VM is stopped")
                    disk.grow_data_disk(workdir.data_disk, wanted.disk_size)
                with self.reconciler.database.writing() as session:
                    vm = records.get(session, vm_id)
                    vm.name, vm.app_id = checked.name, checked.app_id
                    vm.hugepages, vm.pin_numa = wanted.hugepages, wanted.pin_numa
                    records.assign(vm, wanted, checked)
                    records.lease_ports(session, vm, checked.ports)
                    revisions.note(session, vm, revisions.Cause())
            boot_files.record(workdir, vm)

    def _load(self, folder: Path) -> None:
        """Makes a record of a folder that has none."""
        if not (folder / MANIFEST).exists() or (folder / ".removing").exists():
            raise NotFound(f"{folder} holds no VM")
        config, host = self.reconciler.config, self.reconciler.host
        workdir = WorkDir(folder)
        with files.locked(workdir.lock, timeout_s=LOCK_S):
            if folder.name in self._known():
                raise NotFound(f"VM {folder.name} was made meanwhile")
            wanted = _read(workdir, None)
            checked = configuration.check(wanted, config, host_tee=host.tee, root=host.root)
            vm = records.new_row(folder.name, wanted, checked, records.Owner())
            manifest = _manifest(workdir)
            vm.created_ms = manifest["created_at_ms"] or vm.created_ms
            vm.instance_id = _instance_id(workdir)
            with self.reconciler.database.writing() as session:
                session.add(vm)
                records.lease_ports(session, vm, checked.ports)
                records.assign_cid(session, vm, config)
                revisions.note(session, vm, revisions.Cause())
            for path in (folder, workdir.shared):
                path.chmod(0o700)
            boot_files.record(workdir, vm)

    def _mark(self, vm_id: str, reason: str, is_known: bool) -> None:
        """Shows a VM whose folder cannot be read as `unknown`, with the reason."""
        if not is_known and not (self.reconciler.config.run_path / vm_id / MANIFEST).exists():
            return
        with self.reconciler.database.writing() as session:
            vm = session.get(Vm, vm_id)
            if vm is None:
                vm = _unreadable(vm_id)
                session.add(vm)
            vm.options = {**vm.options, "unreadable": reason}
            if vm.observed == Observed.ABSENT:
                vm.boot_error = reason

    def _drop(self, vm_id: str) -> bool:
        """Drops a VM whose folder is gone, with its processes; False when it is there after all."""
        workdir = self.reconciler.workdir(vm_id)
        with self.reconciler.database.reading() as session:
            vm = session.get(Vm, vm_id)
        if vm is None:
            return False
        if not workdir.lock.exists() and vm.created_ms > records.now_ms() - YOUNG_MS:
            return False
        with files.locked(workdir.lock, timeout_s=LOCK_S):
            if workdir.path.exists():
                return False
            for stray in processes.strays(workdir.path):
                process.end(workdir.path, stray, grace_s=1)
            with self.reconciler.database.writing() as session:
                records.get(session, vm_id).wished = Wished.REMOVED
        with contextlib.suppress(NotFound):  # the sweep was faster
            self.reconciler.one(vm_id)
        return True


def _read(workdir: WorkDir, before: Configuration | None) -> Configuration:
    """What a folder says of its VM; the texts that are not in it stay those of the record."""
    told = _manifest(workdir)
    if told["id"] != workdir.path.name:
        raise Invalid(f"{MANIFEST}: id is {told['id'][:64]!r}, not the folder's name")
    if told["volumes"]:
        raise Invalid(f"{MANIFEST}: volumes are not supported")
    cards = [_card(each) for each in told["networks"]]
    compose = _text(workdir, "app-compose.json", configuration.COMPOSE_LIMIT)
    env = _bytes(workdir, configuration.ENCRYPTED_ENV_LIMIT, ".encrypted-env", "encrypted-env")
    user_config = _text(workdir, ".user-config", configuration.USER_CONFIG_LIMIT)
    if compose is None and before is None:
        raise Invalid("shared/app-compose.json is missing")
    return Configuration(
        name=told["name"],
        image=told["image"],
        compose_file=compose if compose is not None else before.compose_file if before else "",
        vcpu=told["vcpu"],
        memory=told["memory"],
        disk_size=told["disk_size"],
        ports=[
            PortMap(p["protocol"], p["host_port"], p["vm_port"], p["address"])
            for p in told["port_map"]
        ],
        encrypted_env=env or b"",
        app_id=told["app_id"],
        user_config=user_config or "",
        hugepages=told["hugepages"],
        pin_numa=told["pin_numa"],
        gpus=told["gpus"],
        kms_urls=told["kms_urls"],
        gateway_urls=told["gateway_urls"],
        stopped=not _started(workdir),
        no_tee=told["no_tee"],
        networking=_card(told["networking"]) if told["networking"] else None,
        networks=cards,
        simulated_tee=told["simulated_tee"],
    )


def _manifest(workdir: WorkDir) -> dict[str, Any]:
    raw = files.read_capped(workdir.path / MANIFEST, MANIFEST_LIMIT)
    try:
        told: dict[str, Any] = prpc.load(Manifest, prpc.read_json(raw))
    except Invalid as error:
        why = error.message.replace("the request body", "it")
        raise Invalid(f"{MANIFEST}: {why}") from None
    return told


def _card(told: dict[str, Any]) -> dict[str, Any]:
    mode = told["mode"]
    bridge = told["bridge_name"] or (told["bridge"] if mode == "bridge" else "")
    return {"mode": mode, "bridge_name": bridge or None}


def _bytes(workdir: WorkDir, limit: int, *names: str) -> bytes | None:
    for name in names:
        with contextlib.suppress(FileNotFoundError):
            return files.read_capped(workdir.shared / name, limit)
    return None


def _text(workdir: WorkDir, name: str, limit: int) -> str | None:
    raw = _bytes(workdir, limit, name)
    try:
        return None if raw is None else raw.decode()
    except UnicodeDecodeError:
        raise Invalid(f"shared/{name} is not UTF-8 text") from None


def _started(workdir: WorkDir) -> bool:
    return _object(workdir.path / "vm-state.json").get("started") is True


def _instance_id(workdir: WorkDir) -> str | None:
    given = _object(workdir.shared / ".instance_info").get("instance_id")
    return given if isinstance(given, str) and re.fullmatch("[0-9a-f]{40}", given) else None


def _object(path: Path) -> dict[str, Any]:
    with contextlib.suppress(CasemateError, OSError, ValueError):
        value = json.loads(files.read_capped(path, MANIFEST_LIMIT))
        return value if isinstance(value, dict) else {}
    return {}


def _unreadable(vm_id: str) -> Vm:
    """The row of a folder of which only the name is known: it can be removed, or repaired and read again."""
    nothing = Configuration(name=vm_id, stopped=True)
    return Vm(
        id=vm_id,
        name=nothing.name,
        project_id=MAIN_ID,
        app_id="",
        image="",
        image_version="",
        vcpu=0,
        memory_mb=0,
        disk_gb=0,
        no_tee=False,
        hugepages=False,
        pin_numa=False,
        options={},
        compose_file="",
        encrypted_env=b"",
        user_config="",
        wished=Wished.STOPPED,
        observed=Observed.ABSENT,
        created_ms=records.now_ms(),
    )
