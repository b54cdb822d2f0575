"""The processes that belong to VMs: each QEMU, and the programs beside it (SvList and its kin).

A process is known by the launch.json in its folder: QEMU's is the VM's own, a companion's lies below it.  Its id
is the VM's id, for a companion with `.` and its name after it.
"""

from __future__ import annotations

import contextlib
import os
import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.errors import Conflict, NotFound
from vmm import process, runner

QEMU = "qemu"
# What vmm/process.py keeps of a process.
_TRACES = ("launch.json", "process.json", "exit.json")


def split(process_id: str) -> tuple[str, str]:
    """The VM's id and the companion's name, "" for QEMU."""
    vm_id, _, name = process_id.partition(".")
    return vm_id, name


def folder(workdir: Path, name: str) -> Path:
    """The folder of a VM's process, "" for QEMU; NotFound when it has none of that name."""
    found = workdir / name if re.fullmatch(r"[a-z0-9]*", name) else workdir / "none"
    if not (found / "launch.json").is_file():
        raise NotFound(f"process {workdir.name}.{name[:64]} not found")
    return found


def of_vm(workdir: Path, vm_name: str) -> list[dict[str, Any]]:
    """The processes of one VM, QEMU first, in the words of ProcessInfo."""
    folders = [
        path.parent for path in (*workdir.glob("launch.json"), *workdir.glob("*/launch.json"))
    ]
    return [_describe(workdir, each, vm_name) for each in folders]


def forget(folder: Path) -> None:
    """Deletes the traces of a process; Conflict while it runs."""
    if process.find(folder) is not None:
        raise Conflict(f"{folder.name} is running; stop it first")
    for name in _TRACES:
        (folder / name).unlink(missing_ok=True)


def strays(workdir: Path) -> Iterator[process.Process]:
    """The living processes of a VM whose folder may be gone: those that hold a lock of it (vmm/runner.py)."""
    for entry in Path("/proc").iterdir():
        with contextlib.suppress(OSError):
            if entry.name.isdigit() and _holds_lock(entry / "fd", f"{workdir}/"):
                yield process.Process(int(entry.name), runner.start_time(int(entry.name)))


def _holds_lock(descriptors: Path, own: str) -> bool:
    links = (os.readlink(each).removesuffix(" (deleted)") for each in descriptors.iterdir())
    return any(link.startswith(own) and link.endswith("/process.lock") for link in links)


def _describe(workdir: Path, folder: Path, vm_name: str) -> dict[str, Any]:
    name = QEMU if folder == workdir else folder.name
    living = process.find(folder)
    return {
        "id": workdir.name if folder == workdir else f"{workdir.name}.{name}",
        "name": f"{vm_name} ({name})",
        "status": "running" if living else _ended(folder),
        "pid": living.pid if living else None,
        "command": shlex.join(process.launched(folder)),
        "note": "",
    }


def _ended(folder: Path) -> str:
    ending = process.ending(folder)
    if ending is None:
        return "stopped"
    return f"exited({ending.code})" if ending.code is not None else f"error({ending})"
