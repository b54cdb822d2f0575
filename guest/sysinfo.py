"""What the VM is made of, read from /proc, /sys and /etc: system figures, network, cloud.

Source: guest-agent.md sections 3, 7 and 9 for the fields and their units.
"""

from __future__ import annotations

import contextlib
import fcntl
import ipaddress
import os
import re
import socket
import struct
from dataclasses import dataclass
from pathlib import Path

_INTERFACES = re.compile(r"dstack-wg0|enp.*|eth.*")
# linux/sockios.h
_SIOCGIFADDR = 0x8915
_SIOCGIFNETMASK = 0x891B


@dataclass(frozen=True)
class Disk:
    """A mounted file system; sizes in bytes."""

    name: str
    mount_point: str
    total_size: int
    free_size: int


@dataclass(frozen=True)
class SystemInfo:
    """Sizes in bytes, `uptime` in seconds, load averages times 100."""

    os_name: str
    os_version: str
    kernel_version: str
    cpu_model: str
    num_cpus: int
    total_memory: int
    available_memory: int
    used_memory: int
    free_memory: int
    total_swap: int
    used_swap: int
    free_swap: int
    uptime: int
    loadavg_one: int
    loadavg_five: int
    loadavg_fifteen: int
    disks: list[Disk]


def system(root: Path, disks: tuple[Path, ...]) -> SystemInfo:
    """The figures now; `disks` are mount points, and what is not mounted yet is left out."""
    release = os_release(root)
    memory = _meminfo(root)
    cpu_model, num_cpus = _cpu(root)
    loads = [round(float(load) * 100) for load in _read(root / "proc/loadavg").split()[:3]]
    return SystemInfo(
        os_name=release.get("NAME", ""),
        os_version=release.get("VERSION_ID", ""),
        kernel_version=_read(root / "proc/sys/kernel/osrelease"),
        cpu_model=cpu_model,
        num_cpus=num_cpus,
        total_memory=memory["MemTotal"],
        available_memory=memory["MemAvailable"],
        used_memory=memory["MemTotal"] - memory["MemAvailable"],
        free_memory=memory["MemFree"],
        total_swap=memory["SwapTotal"],
        used_swap=memory["SwapTotal"] - memory["SwapFree"],
        free_swap=memory["SwapFree"],
        uptime=int(float(_read(root / "proc/uptime").split()[0])),
        loadavg_one=loads[0],
        loadavg_five=loads[1],
        loadavg_fifteen=loads[2],
        disks=_disks(root, disks),
    )


def _read(path: Path) -> str:
    return path.read_text(errors="replace").strip()


def os_release(root: Path) -> dict[str, str]:
    """The fields of /etc/os-release; empty when there is none."""
    with contextlib.suppress(FileNotFoundError):
        lines = _read(root / "etc/os-release").splitlines()
        pairs = (line.split("=", 1) for line in lines if "=" in line)
        return {key: value.strip("\"'") for key, value in pairs}
    return {}


def _meminfo(root: Path) -> dict[str, int]:
    lines = (line.split(":", 1) for line in _read(root / "proc/meminfo").splitlines())
    return {name: int(value.split()[0]) * 1024 for name, value in lines}


def _cpu(root: Path) -> tuple[str, int]:
    text = _read(root / "proc/cpuinfo")
    names = re.findall(r"^model name\s*:\s*(.*)$", text, re.MULTILINE)
    rates = re.findall(r"^cpu MHz\s*:\s*([\d.]+)$", text, re.MULTILINE)
    name = names[0] if names else ""
    rate = round(float(rates[0])) if rates else 0
    return f"{name} @{rate} MHz", len(re.findall(r"^processor\s*:", text, re.MULTILINE))


def _disks(root: Path, mounts: tuple[Path, ...]) -> list[Disk]:
    devices = {}
    for line in _read(root / "proc/mounts").splitlines():
        device, mount_point, *_ = line.split()
        devices[mount_point] = device
    found = []
    for mount in mounts:
        if str(mount) in devices:
            size = os.statvfs(mount)
            total, free = size.f_blocks * size.f_frsize, size.f_bavail * size.f_frsize
            found.append(Disk(devices[str(mount)], str(mount), total, free))
    return found


@dataclass(frozen=True)
class Address:
    """An interface address in text form with its prefix length."""

    address: str
    prefix: int


@dataclass(frozen=True)
class Interface:
    """A network interface with its addresses and counters."""

    name: str
    addresses: list[Address]
    rx_bytes: int
    tx_bytes: int
    rx_errors: int
    tx_errors: int


@dataclass(frozen=True)
class Gateway:
    """The router of a default route."""

    address: str


@dataclass(frozen=True)
class NetworkInfo:
    """Name servers, routers and interfaces; `wg_info` is empty because no gateway is set up."""

    dns_servers: list[str]
    gateways: list[Gateway]
    interfaces: list[Interface]
    wg_info: str = ""


def network(root: Path) -> NetworkInfo:
    """The network as it is now."""
    folder = root / "sys/class/net"
    names = sorted(path.name for path in folder.iterdir() if _INTERFACES.fullmatch(path.name))
    return NetworkInfo(
        dns_servers=_dns_servers(root),
        gateways=_gateways(root),
        interfaces=[_interface(root, name) for name in names],
    )


def _dns_servers(root: Path) -> list[str]:
    with contextlib.suppress(FileNotFoundError):
        words = (line.split() for line in _read(root / "etc/resolv.conf").splitlines())
        return [word[1] for word in words if len(word) > 1 and word[0] == "nameserver"]
    return []


def _gateways(root: Path) -> list[Gateway]:
    rows = (line.split() for line in _read(root / "proc/net/route").splitlines()[1:])
    # Destination 0 with RTF_GATEWAY (2); the kernel prints addresses in host byte order.
    return [
        Gateway(socket.inet_ntoa(struct.pack("=I", int(row[2], 16))))
        for row in rows
        if row[1] == "00000000" and int(row[3], 16) & 2
    ]


def _interface(root: Path, name: str) -> Interface:
    statistics = root / "sys/class/net" / name / "statistics"

    def count(counter: str) -> int:
        return int(_read(statistics / counter))

    return Interface(
        name=name,
        addresses=[*_ipv4(name), *_ipv6(root, name)],
        rx_bytes=count("rx_bytes"),
        tx_bytes=count("tx_bytes"),
        rx_errors=count("rx_errors"),
        tx_errors=count("tx_errors"),
    )


def _ipv4(name: str) -> list[Address]:
    request = struct.pack("256s", name.encode()[:15])
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        try:
            address = fcntl.ioctl(sock, _SIOCGIFADDR, request)[20:24]
            mask = fcntl.ioctl(sock, _SIOCGIFNETMASK, request)[20:24]
        except OSError:
            return []
    prefix = int.from_bytes(mask, "big").bit_count()
    return [Address(socket.inet_ntoa(address), prefix)]


def _ipv6(root: Path, name: str) -> list[Address]:
    try:
        rows = [line.split() for line in _read(root / "proc/net/if_inet6").splitlines()]
    except FileNotFoundError:
        return []
    return [
        Address(str(ipaddress.IPv6Address(int(row[0], 16))), int(row[2], 16))
        for row in rows
        if row[5] == name
    ]


def cloud(root: Path) -> tuple[str, str]:
    """Vendor and product of the (virtual) machine as its firmware names them; empty when unreadable."""
    folder = root / "sys/class/dmi/id"
    return _or_empty(folder / "sys_vendor"), _or_empty(folder / "product_name")


def _or_empty(path: Path) -> str:
    try:
        return _read(path)
    except OSError:
        return ""


def metrics(info: SystemInfo) -> str:
    """The figures in Prometheus' text form 0.0.4 (guest-agent.md section 7)."""
    rows: list[tuple[str, str, dict[str, str], int]] = [
        ("system_os_name", "Operating system", {"os_name": info.os_name}, 1),
        ("system_os_version", "Operating system version", {"os_version": info.os_version}, 1),
        ("system_kernel_version", "Kernel", {"kernel_version": info.kernel_version}, 1),
        ("system_cpu_model", "Processor", {"cpu_model": info.cpu_model}, 1),
        ("system_num_cpus", "Processors", {}, info.num_cpus),
        ("system_memory_total", "Memory in bytes", {}, info.total_memory),
        ("system_memory_available", "Memory that can be had, in bytes", {}, info.available_memory),
        ("system_memory_used", "Memory in use, in bytes", {}, info.used_memory),
        ("system_memory_free", "Memory nobody uses, in bytes", {}, info.free_memory),
        ("system_swap_total", "Swap in bytes", {}, info.total_swap),
        ("system_swap_used", "Swap in use, in bytes", {}, info.used_swap),
        ("system_swap_free", "Free swap in bytes", {}, info.free_swap),
        ("system_uptime", "Seconds since boot", {}, info.uptime),
        ("system_load_average_1m", "Load average of 1 minute times 100", {}, info.loadavg_one),
        ("system_load_average_5m", "Load average of 5 minutes times 100", {}, info.loadavg_five),
        (
            "system_load_average_15m",
            "Load average of 15 minutes times 100",
            {},
            info.loadavg_fifteen,
        ),
    ]
    lines = [line for row in rows for line in _metric(row[0], row[1], [(row[2], row[3])])]
    for name, help_text, value in (
        ("disk_total_size", "File system size in bytes", lambda disk: disk.total_size),
        ("disk_free_size", "Free space in bytes", lambda disk: disk.free_size),
        ("disk_used_size", "Used space in bytes", lambda disk: disk.total_size - disk.free_size),
        ("disk_usage_percentage", "Used share in percent", _usage),
    ):
        samples = [
            ({"name": disk.name, "mount_point": disk.mount_point}, value(disk))
            for disk in info.disks
        ]
        lines += _metric(name, help_text, samples)
    return "\n".join(lines) + "\n"


def _usage(disk: Disk) -> int:
    return (
        round(100 * (disk.total_size - disk.free_size) / disk.total_size) if disk.total_size else 0
    )


def _metric(name: str, help_text: str, samples: list[tuple[dict[str, str], int]]) -> list[str]:
    lines = [f"# HELP {name} {help_text}", f"# TYPE {name} gauge"]
    for labels, value in samples:
        shown = ",".join(f'{key}="{_escape(text)}"' for key, text in labels.items())
        lines.append(f"{name}{{{shown}}} {value}" if labels else f"{name} {value}")
    return lines


def _escape(text: str) -> str:
    return text.replace("\\", "\\\\").replace("\n", "\\n").replace('"', '\\"')
