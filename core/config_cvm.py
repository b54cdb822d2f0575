"""The table [cvm] of the configuration and those in it: how VMs are made and run."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from core.errors import Invalid


@dataclass(frozen=True)
class NetworkingConfig:
    """The network of a VM that asks for none of its own."""

    mode: str = "user"
    net: str = "10.0.2.0/24"
    dhcp_start: str = "10.0.2.10"
    restrict: bool = False
    bridge: str = ""
    bridges: tuple[str, ...] = ()  # what a request may name beside `bridge`
    mac_prefix: str = ""
    netdev: str = ""  # QEMU's own words for mode custom; {id} stands for the card's id


@dataclass(frozen=True)
class PortRange:
    """Host ports that tenants may map, both ends included."""

    protocol: str = "tcp"
    from_: int = 1
    to: int = 20000


@dataclass(frozen=True)
class PortMappingConfig:
    """Whether and where guest ports appear on the host."""

    enabled: bool = False
    address: str = "127.0.0.1"
    range: tuple[PortRange, ...] = (PortRange(),)


@dataclass(frozen=True)
class AutoRestartConfig:
    """Restarting VMs that should run and do not; seconds."""

    enabled: bool = True
    interval: int = 20
    max_retries: int = 5
    initial_backoff: int = 5
    max_backoff: int = 300
    reset_window: int = 300


@dataclass(frozen=True)
class LogConfig:
    """Rotation of the serial logs; `max_bytes` takes K, M or G, 0 turns it off."""

    max_bytes: int = 4 * 1024 * 1024
    max_backups: int = 3
    check_interval_secs: int = 5


@dataclass(frozen=True)
class ProductConfig:
    """The DMI texts that a guest sees."""

    sys_vendor: str = ""
    product_name: str = "dstack"


@dataclass(frozen=True)
class GpuConfig:
    """Which PCI devices VMs may be given: `listing` has vendor:product, `exclude` and `include` slots."""

    enabled: bool = False
    listing: tuple[str, ...] = ("10de:2335",)
    exclude: tuple[str, ...] = ()
    include: tuple[str, ...] = ()
    allow_attach_all: bool = True


@dataclass(frozen=True)
class CvmConfig:
    """How VMs are made and run."""

    platform: str = "auto"
    accel: str = "auto"
    channel: str = "auto"
    simulate: bool = False
    qemu_path: str = ""  # default: qemu-system-x86_64 on PATH
    kms_urls: tuple[str, ...] = ()
    gateway_urls: tuple[str, ...] = ()
    pccs_url: str = ""
    nvidia_attestation_proxy_url: str = ""
    docker_registry: str = ""
    cid_start: int = 1000
    cid_pool_size: int = 1000
    max_allocable_vcpu: int = 20
    max_allocable_memory_in_mb: int = 100_000
    host_share_mode: str = "vhd"
    use_mrconfigid: bool = True
    qmp_socket: bool = True  # dstack's key; Casemate needs the socket and always makes it
    # What a verifier must know of a QEMU that differs from its version's usual ways; None: it does not.
    qemu_single_pass_add_pages: bool | None = None
    qemu_pic: bool | None = None
    qemu_version: str = ""  # default: what QEMU says
    qemu_pci_hole64_size: int = 0
    qemu_hotplug_off: bool = False
    qgs_port: int = 4050
    user: str = ""  # default: the service's own
    product: ProductConfig = ProductConfig()
    networking: NetworkingConfig = NetworkingConfig()
    port_mapping: PortMappingConfig = PortMappingConfig()
    gpu: GpuConfig = GpuConfig()
    auto_restart: AutoRestartConfig = AutoRestartConfig()
    log: LogConfig = LogConfig()


def check(cvm: CvmConfig) -> None:
    """Invalid naming the key of a value that breaks its rule."""
    _check_choices(cvm)
    _check_networking(cvm.networking)
    _check_port_mapping(cvm.port_mapping)


def _check_choices(cvm: CvmConfig) -> None:
    for key, value, allowed in (
        ("cvm.platform", cvm.platform, ("auto", "tdx", "amd-sev-snp")),
        ("cvm.accel", cvm.accel, ("auto", "kvm", "tcg")),
        ("cvm.channel", cvm.channel, ("auto", "serial", "vsock")),
        ("cvm.host_share_mode", cvm.host_share_mode, ("vhd", "9p", "vvfat")),
        ("cvm.networking.mode", cvm.networking.mode, ("user", "bridge", "passt", "custom")),
    ):
        if value not in allowed:
            raise Invalid.field(key, f"must be one of {', '.join(allowed)}")


def _check_networking(networking: NetworkingConfig) -> None:
    if not re.fullmatch(r"([0-9A-Fa-f]{2}(:[0-9A-Fa-f]{2}){0,2})?", networking.mac_prefix):
        raise Invalid.field("cvm.networking.mac_prefix", "must be up to three bytes like 52:54:00")
    try:
        net = ipaddress.IPv4Network(networking.net)
    except ValueError:
        raise Invalid.field("cvm.networking.net", "must be an IPv4 network: 10.0.2.0/24") from None
    try:
        inside = ipaddress.IPv4Address(networking.dhcp_start) in net
    except ValueError:
        inside = False
    if not inside:
        raise Invalid.field("cvm.networking.dhcp_start", f"must be an address of {net}")
    for bridge in (networking.bridge, *networking.bridges):
        # The kernel's rule for a device name.
        if bridge and not re.fullmatch(r"[A-Za-z0-9_.\-]{1,15}", bridge):
            raise Invalid.field("cvm.networking.bridge", "must be the name of a network bridge")
    if networking.mode == "bridge" and not networking.bridge:
        raise Invalid.field("cvm.networking.bridge", "must name the bridge that mode bridge is on")
    if networking.netdev and not re.search(r"\bid=(net\d+|\{id\})", networking.netdev):
        raise Invalid.field("cvm.networking.netdev", "must contain id={id} (or id=net0)")
    if networking.mode == "custom" and not networking.netdev:
        raise Invalid.field("cvm.networking.netdev", "must hold QEMU's -netdev for mode custom")


def _check_port_mapping(mapping: PortMappingConfig) -> None:
    for each in mapping.range:
        if each.protocol not in ("tcp", "udp") or not 1 <= each.from_ <= each.to <= 65535:
            raise Invalid.field(
                "cvm.port_mapping.range", "needs tcp or udp and 1 <= from <= to <= 65535"
            )
    try:
        ipaddress.ip_address(mapping.address)
    except ValueError:
        raise Invalid.field("cvm.port_mapping.address", "must be an IP address") from None
