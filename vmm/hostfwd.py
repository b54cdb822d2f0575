"""Host ports of a running VM: QEMU's own forwards, added and removed while it runs.

Through QMP's `human-monitor-command`, whose refusals are text in an answer that looks like success.  Source: QEMU
7.2, net/slirp.c (hostfwd_add, hostfwd_remove, info usernet).
"""

from __future__ import annotations

import json
import re
from pathlib import Path

from core.errors import Unsupported, Upstream
from vmm import qmp
from vmm.network import BINDING, Port
from vmm.workdir import NETWORKS

_SHOWN = re.compile(r"(TCP|UDP)\[HOST_FORWARD\]\s+\d+\s+(\S+)\s+(\d+)\s+\S+\s+(\d+)")


def shown(workdir: Path) -> set[Port]:
    """The forwards that a running QEMU has now, of all its cards of mode user."""
    text = _monitor(workdir, "info usernet")
    return {
        Port(protocol.lower(), address.replace("*", "0.0.0.0"), int(host_port), int(vm_port))
        for protocol, address, host_port, vm_port in _SHOWN.findall(text)
    }


def add(workdir: Path, port: Port) -> None:
    """Makes a host port lead into a running VM; Upstream with QEMU's words when it cannot."""
    card = _card(workdir)
    if port in shown(workdir):
        return
    rule = f"{port.protocol}:{port.host_address}:{port.host_port}-:{port.vm_port}"
    said = _monitor(workdir, f"hostfwd_add {card} {rule}")
    if said.strip():
        raise Upstream(f"QEMU does not open host port {port}: {said.strip()[:500]}")


def remove(workdir: Path, port: Port) -> None:
    """Takes a host port from a running VM; nothing happens when it has none such."""
    rule = f"{port.protocol}:{port.host_address}:{port.host_port}"
    said = _monitor(workdir, f"hostfwd_remove {_card(workdir)} {rule}")
    if "removed" not in said and "not found" not in said:
        raise Upstream(f"QEMU does not close host port {port}: {said.strip()[:500]}")


def _card(workdir: Path) -> str:
    """QEMU's name of the card that has the host ports, as the VM was started."""
    cards = json.loads((workdir / NETWORKS).read_bytes())["networks"]
    binding = [(index, card["mode"]) for index, card in enumerate(cards) if card["mode"] in BINDING]
    if not binding or binding[0][1] != "user":
        raise Unsupported("host ports of a running VM need a network card in mode user")
    return f"net{binding[0][0]}"


def _monitor(workdir: Path, command: str) -> str:
    return str(qmp.execute(workdir, "human-monitor-command", {"command-line": command}))
