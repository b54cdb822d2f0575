"""Network cards and host ports: which are allowed, which are free, how they are addressed."""

from __future__ import annotations

import hashlib
import ipaddress
import re
import shutil
import socket
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from core.config_cvm import NetworkingConfig, PortMappingConfig
from core.errors import Conflict, Invalid


@dataclass(frozen=True)
class Port:
    """A host port that leads to a guest port; the address is in its canonical text form."""

    protocol: str
    host_address: str
    host_port: int
    vm_port: int

    def __str__(self) -> str:
        return f"{self.protocol} {self.host_address}:{self.host_port}"

    def collides_with(self, other: Port) -> bool:
        """Whether both cannot be bound at once: an unspecified address takes all of them."""
        if (self.protocol, self.host_port) != (other.protocol, other.host_port):
            return False
        addresses = {self.host_address, other.host_address}
        return len(addresses) == 1 or bool(addresses & {"0.0.0.0", "::"})


@dataclass(frozen=True)
class Nic:
    """A wished network card: its mode, and the bridge of one in mode bridge."""

    mode: str
    bridge: str = ""


# Who binds a VM's host ports: the first card of QEMU's own or of passt; else the relay to a bridge card.
BINDING = ("user", "passt")


def check_nics(
    networking: dict[str, Any] | None, networks: Sequence[dict[str, Any]], node: NetworkingConfig
) -> tuple[Nic, ...]:
    """The cards that a request asks for, the node's default when it asks for none; Invalid otherwise.

    `networks` wins over `networking`.  Nothing of a request ever becomes an option of QEMU's but the name of a
    bridge that the configuration allows.
    """
    wanted = list(networks) or ([networking] if networking else [{}])
    return tuple(_nic(each, node) for each in wanted)


def _nic(wanted: dict[str, Any], node: NetworkingConfig) -> Nic:
    mode, bridge = wanted.get("mode") or node.mode, wanted.get("bridge_name") or ""
    if mode not in ("user", "bridge", "passt", "custom"):
        raise Invalid.field("networking.mode", "must be user, bridge, passt or custom")
    if bridge and mode != "bridge":
        raise Invalid.field("networking.bridge_name", "needs the mode bridge")
    if mode == "custom" and not node.netdev:
        raise Invalid.field("networking.mode", "custom needs cvm.networking.netdev on this host")
    if mode != "bridge":
        return Nic(mode)
    if bridge and bridge not in (node.bridge, *node.bridges):
        allowed = ", ".join(filter(None, (node.bridge, *node.bridges))) or "none"
        raise Invalid.field(
            "networking.bridge_name", f"is not allowed by cvm.networking.bridges ({allowed})"
        )
    if not (bridge or node.bridge):
        raise Invalid.field("networking.mode", "bridge needs cvm.networking.bridge on this host")
    return Nic("bridge", bridge or node.bridge)


def check_reachable(ports: Sequence[Port], nics: Sequence[Nic]) -> None:
    """Invalid when no card of a VM can have host ports, or the one that gets them not these."""
    if ports and not any(nic.mode in (*BINDING, "bridge") for nic in nics):
        raise Invalid.field("ports", "need a network card in mode user, passt or bridge")
    # QEMU's own hostfwd reads IPv4 addresses alone.
    if next((nic.mode for nic in nics if nic.mode in BINDING), "") == "user":
        for index, port in enumerate(ports):
            if ":" in port.host_address:
                raise Invalid.field(
                    f"ports[{index}].host_address",
                    f"{port.host_address} needs a network card in mode passt or bridge; mode user has "
                    "IPv4 host ports only",
                )


def check_port(
    index: int,
    protocol: str,
    host_address: str,
    host_port: int,
    vm_port: int,
    rules: PortMappingConfig,
) -> Port:
    """One wished mapping as a Port, or Invalid naming `ports[index]` and the rule it breaks."""

    def no(part: str, reason: str) -> Invalid:
        return Invalid.field(f"ports[{index}].{part}", reason)

    if not rules.enabled:
        raise Invalid.field("ports", "port mapping is off; set cvm.port_mapping.enabled = true")
    if protocol not in ("tcp", "udp"):
        raise no("protocol", "must be tcp or udp")
    if not 1 <= vm_port <= 65535:
        raise no("vm_port", "must be between 1 and 65535")
    if not 1 <= host_port <= 65535:
        raise no("host_port", "must be between 1 and 65535")
    allowed = [each for each in rules.range if each.protocol == protocol]
    if not any(each.from_ <= host_port <= each.to for each in allowed):
        ranges = ", ".join(f"{each.from_}-{each.to}" for each in allowed) or "none"
        raise no(
            "host_port", f"{host_port} is outside the ranges allowed for {protocol} ({ranges})"
        )
    try:
        address = ipaddress.ip_address(host_address or rules.address)
    except ValueError:
        raise no("host_address", "must be an IPv4 or IPv6 address") from None
    # The same address in another dress would be leased twice.
    address = getattr(address, "ipv4_mapped", None) or address
    # A zone may be any text, also commas and more options of QEMU.
    if getattr(address, "scope_id", None) is not None:
        raise no("host_address", "must be without a zone (%)")
    return Port(protocol, str(address), host_port, vm_port)


def check_apart(ports: Sequence[Port]) -> None:
    """Invalid when two mappings of one request want the same host port."""
    for index, port in enumerate(ports):
        if any(port.collides_with(earlier) for earlier in ports[:index]):
            raise Invalid.field(f"ports[{index}].host_port", f"{port} is mapped twice")


def check_free(ports: Iterable[Port], leased: Iterable[Port]) -> None:
    """Conflict naming the port when another VM holds it."""
    taken = list(leased)
    for port in ports:
        if any(port.collides_with(other) for other in taken):
            raise Conflict(f"host port {port} is already used by another VM")


def check_bindable(ports: Iterable[Port]) -> None:
    """Conflict naming the port when some program on the host has it; QEMU says so in a log only."""
    for port in ports:
        family = socket.AF_INET6 if ":" in port.host_address else socket.AF_INET
        kind = socket.SOCK_STREAM if port.protocol == "tcp" else socket.SOCK_DGRAM
        with socket.socket(family, kind) as probe:
            # QEMU binds with SO_REUSEADDR too: a connection in TIME_WAIT is no obstacle.
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((port.host_address, port.host_port))
                if port.protocol == "tcp":
                    probe.listen(1)
            except OSError as error:
                raise Conflict(f"host port {port} cannot be bound: {error.strerror}") from None


def check_mac(text: str) -> str:
    """A MAC in lower case with colons, or Invalid."""
    mac = text.lower().replace("-", ":")
    if not re.fullmatch(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", mac):
        raise Invalid.field("mac", "must be six bytes like 02:ab:cd:ef:01:23")
    return mac


def check_guest_address(text: str) -> str:
    """An address that a guest may have, in its canonical form, or Invalid.

    Host ports are led there: it must be no address of the host's own.
    """
    try:
        address = ipaddress.ip_address(text)
    except ValueError:
        raise Invalid.field("ip", "must be an IP address like 192.168.122.100") from None
    if address.is_loopback or address.is_unspecified or address.is_multicast or "%" in text:
        raise Invalid.field("ip", f"{address} is no address of a guest")
    return str(address)


def supported_modes(node: NetworkingConfig) -> list[str]:
    """The modes that a request may name on this host."""
    return [
        "user",
        *(["bridge"] if node.bridge or node.bridges else []),
        *(["passt"] if shutil.which("passt") else []),
        *(["custom"] if node.netdev else []),
    ]


def mac_address(vm_id: str, index: int = 0, prefix: str = "") -> str:
    """The MAC of a VM's network card (vmm.md section 8): from the id alone, locally administered."""
    text = vm_id if index == 0 else f"{vm_id}:{index}"
    digest = bytearray(hashlib.sha256(text.encode()).digest()[:6])
    given = bytes.fromhex(prefix.replace(":", ""))[:3]
    digest[: len(given)] = given
    digest[0] = digest[0] & 0xFE | 0x02
    return digest.hex(":")
