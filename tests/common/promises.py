"""What a service promises whatever is killed: looked at from outside, in its files, its rows and the process table."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.common.service import RunningService
from vmm import process

AT_REST = {"running", "stopped", "exited"}


@dataclass(frozen=True)
class Seen:
    """One VM: its row, its events and its living process."""

    wished: str
    observed: str
    status: str
    compose: str
    size: tuple[int, int, int]
    ports: tuple[int, ...]
    events: tuple[str, ...]
    process: process.Process | None


def look(service: RunningService) -> dict[str, Seen]:
    """All VMs as they are now."""
    listed = {vm["id"]: vm for vm in service.call("prpc/Status")["vms"]}
    with contextlib.closing(sqlite3.connect(service.data_dir / "casemate.db")) as rows:
        found = rows.execute(
            "SELECT id, wished, observed, compose_file, vcpu, memory_mb, disk_gb FROM vms"
        ).fetchall()
        return {
            vm_id: Seen(
                wished,
                observed,
                listed.get(vm_id, {}).get("status", "not listed"),
                compose,
                (vcpu, memory, disk),
                tuple(
                    row[0]
                    for row in rows.execute(
                        "SELECT host_port FROM port_leases WHERE vm_id = ? ORDER BY 1", (vm_id,)
                    )
                ),
                tuple(
                    row[0]
                    for row in rows.execute(
                        "SELECT event FROM vm_events WHERE vm_id = ? ORDER BY id", (vm_id,)
                    )
                ),
                process.find(service.data_dir / "vm" / vm_id),
            )
            for vm_id, wished, observed, compose, vcpu, memory, disk in found
        }


def is_settled(service: RunningService) -> bool:
    """Whether no VM is on its way to somewhere, and each row says what its process says."""
    return all(
        vm.status in AT_REST and (vm.status == "running") == (vm.process is not None)
        for vm in look(service).values()
    )


def breaches(service: RunningService, kept: set[str], removed: set[str]) -> list[str]:
    """Every promise that is broken now, for a service that has settled.

    `kept` and `removed` are the ids that were answered by a creation and by a removal.
    """
    vms = look(service)
    return [
        *(f"lost: {vm_id}" for vm_id in kept - removed - vms.keys()),
        *(f"not removed: {vm_id}" for vm_id in removed & vms.keys()),
        *_processes(service, vms),
        *_leases(service, vms),
        *(fault for vm_id, vm in vms.items() for fault in _files(service, vm_id, vm)),
        *_left_over(service, vms),
    ]


def _processes(service: RunningService, vms: dict[str, Seen]) -> list[str]:
    named: dict[str, list[int]] = {}
    for each in service.qemus():
        command = each.cmdline()
        if "-name" in command:
            named.setdefault(command[command.index("-name") + 1], []).append(each.pid)
    broken = [f"doubled: {vm_id} runs as {pids}" for vm_id, pids in named.items() if len(pids) > 1]
    broken += [f"orphaned: {pids} has no row" for vm_id, pids in named.items() if vm_id not in vms]
    for vm_id, vm in vms.items():
        if (vm.process is None) != (vm_id not in named):
            broken.append(
                f"unknown process: {vm_id} runs as {named.get(vm_id)}, known {vm.process}"
            )
    return broken


def _leases(service: RunningService, vms: dict[str, Seen]) -> list[str]:
    with contextlib.closing(sqlite3.connect(service.data_dir / "casemate.db")) as rows:
        held = rows.execute("SELECT vm_id, protocol, host_port FROM port_leases").fetchall()
    broken = [f"lease without a VM: {lease}" for lease in held if lease[0] not in vms]
    if len({lease[1:] for lease in held}) < len(held):
        broken.append(f"a port leased twice: {held}")
    return broken


def _files(service: RunningService, vm_id: str, vm: Seen) -> list[str]:
    folder = service.data_dir / "vm" / vm_id
    broken = []
    for name in ("vm-manifest.json", "vm-state.json", "launch.json", "shared/.sys-config.json"):
        broken += _not_json(folder / name)
    compose = folder / "shared/app-compose.json"
    broken += _not_json(compose)
    # An update of a running VM takes effect at its next start.
    since_start = vm.events[_last(vm.events, "vmm.start") :]
    is_current = vm.process is not None and "vmm.update" not in since_start
    if is_current and _digest(compose) != hashlib.sha256(vm.compose.encode()).digest():
        broken.append(f"{vm_id} runs with another app-compose than its row has")
    return broken


def _last(events: tuple[str, ...], name: str) -> int:
    return max((at for at, event in enumerate(events) if event == name), default=0)


def _digest(path: Path) -> bytes:
    return hashlib.sha256(path.read_bytes()).digest() if path.exists() else b""


def _not_json(path: Path) -> list[str]:
    try:
        value: Any = json.loads(path.read_bytes())
        return [] if isinstance(value, dict) else [f"{path} holds {value!r}"]
    except FileNotFoundError:
        return []  # a VM that never ran
    except ValueError as error:
        return [f"{path} is half: {error}"]


def _left_over(service: RunningService, vms: dict[str, Seen]) -> list[str]:
    of_vms = vms.keys() | {f".{vm_id}.lock" for vm_id in vms} | {"fake.json"}
    return [
        f"left over: {path}"
        for path in (service.data_dir / "vm").iterdir()
        if path.name not in of_vms
    ]
