"""Programs beside a VM's QEMU: passt, swtpm and the port relay, each with a folder in the VM's own.

They are started, recognised after a restart of the service and ended by vmm/process.py, as QEMU is.
"""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from core.errors import Invalid, Unavailable
from vmm import forward, process
from vmm.network import Port

# Starting takes a moment; a busy host is slow.
READY_S = 30.0
GRACE_S = 1.0
RELAY = "forward"
TPM = "swtpm"


def socket_of(folder: Path) -> Path:
    """Where the program of a folder listens: in the part of it that is the program's own."""
    return folder / "run" / "sock"


def passt_argv(socket: Path, ports: Sequence[Port], *, as_root: bool) -> list[str]:
    """The command of a passt that serves one card on a socket and leads host ports to the guest."""
    argv = ["passt", "--foreground", "--stderr", "--quiet", "--socket", str(socket)]
    # It ends with its QEMU, also when nobody is there to end it.
    argv += ["--one-off"]
    # The host's loopback is no part of a guest's network.
    argv += ["--no-map-gw"]
    if as_root:
        # It would become nobody, who cannot reach a VM's folder.
        argv += ["--runas", "0"]
    for port in ports:
        # One option a port: long lists of ports broke its parser.
        flag = "-t" if port.protocol == "tcp" else "-u"
        argv += [flag, f"{port.host_address}/{port.host_port}:{port.vm_port}"]
    return argv


def swtpm_argv(socket: Path) -> list[str]:
    """The command of a software TPM 2.0 that keeps its state beside its socket."""
    return [
        *("swtpm", "socket", "--tpm2", "--terminate"),
        *("--tpmstate", f"dir={socket.parent},mode=0600"),
        *("--ctrl", f"type=unixio,path={socket},mode=0600"),
    ]


def check_installed(program: str, field: str) -> None:
    """Invalid naming the field that asked for a program which this host does not have."""
    if shutil.which(program) is None:
        raise Invalid.field(
            field, f"{program} is not installed on this host: apt-get install {program}"
        )


def start(folder: Path, argv: Sequence[str], ready: Path) -> None:
    """Starts a program in a folder and waits until the file `ready` is there.

    Unavailable with its last words when it ends before that, or is not ready in time.
    """
    end(folder)
    folder.mkdir(mode=0o700, exist_ok=True)
    ready.unlink(missing_ok=True)
    (folder / "stderr.log").unlink(missing_ok=True)
    started = process.spawn(folder, argv)
    deadline = time.monotonic() + READY_S
    while not ready.exists():
        if not process.is_alive(started) or time.monotonic() > deadline:
            end(folder)
            why = process.last_line(folder / "stderr.log")
            raise Unavailable(f"{folder.name} did not start: {why}")
        time.sleep(0.005)


def end(folder: Path) -> None:
    """Ends the program of a folder; nothing happens when it runs no more.

    Unavailable when it resists.
    """
    found = process.find(folder)
    if found is not None and not process.end(folder, found, grace_s=GRACE_S):
        raise Unavailable(f"{folder.name} (process {found.pid}) does not end")


def end_all(workdir: Path) -> None:
    """Ends every program beside a VM."""
    for record in workdir.glob("*/launch.json"):
        end(record.parent)


def relay(workdir: Path, ports: Sequence[Port], target: str) -> None:
    """Makes the relay lead host ports to an address, "" for nowhere; one that does so already stays."""
    folder = workdir / RELAY
    wanted = forward.rules(ports, target)
    if process.find(folder) is not None:
        if target and forward.read_rules(folder) == wanted:
            return
        end(folder)
    if target and ports:
        folder.mkdir(mode=0o700, exist_ok=True)
        forward.write_rules(folder, wanted)
        argv = [sys.executable, "-I", "-S", forward.__file__, str(folder)]
        start(folder, argv, folder / forward.READY)
