"""The messages of the VMM's interface, with dstack's names and field numbers (vmm.md section 3)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from core.prpc import (
    Flag,
    HexBytes,
    Message,
    Nested,
    Repeated,
    Text,
    UInt32,
    UInt64,
)


@dataclass(frozen=True)
class PortMap:
    """One wished port mapping."""

    protocol: str
    host_port: int
    vm_port: int
    host_address: str


@dataclass(frozen=True)
class Configuration:
    """What a VM is made from, as the caller gave it."""

    name: str = ""
    image: str = ""
    compose_file: str = ""
    vcpu: int = 0
    memory: int = 0
    disk_size: int = 0
    ports: list[PortMap] = field(default_factory=list)
    encrypted_env: bytes = b""
    app_id: str | None = None
    user_config: str = ""
    hugepages: bool = False
    pin_numa: bool = False
    gpus: dict[str, Any] | None = None
    kms_urls: list[str] = field(default_factory=list)
    gateway_urls: list[str] = field(default_factory=list)
    stopped: bool = False
    no_tee: bool = False
    networking: dict[str, Any] | None = None
    networks: list[dict[str, Any]] = field(default_factory=list)
    simulated_tee: str | None = None


@dataclass(frozen=True)
class Change:
    """What UpdateVm or ResizeVm changes of a VM; None and, for texts, "" keep what there is."""

    id: str
    compose_file: str = ""
    encrypted_env: bytes = b""
    user_config: str = ""
    update_ports: bool = False
    ports: list[PortMap] = field(default_factory=list)
    update_kms_urls: bool = False
    kms_urls: list[str] = field(default_factory=list)
    update_gateway_urls: bool = False
    gateway_urls: list[str] = field(default_factory=list)
    gpus: dict[str, Any] | None = None
    vcpu: int | None = None
    memory: int | None = None
    disk_size: int | None = None
    image: str | None = None
    no_tee: bool | None = None
    update_networking: bool = False
    networks: list[dict[str, Any]] = field(default_factory=list)


@dataclass(frozen=True)
class StatusQuery:
    """Which VMs to list."""

    ids: list[str] = field(default_factory=list)
    brief: bool = False
    keyword: str = ""
    page: int = 0
    page_size: int = 0


class Id(Message):
    """A VM's id."""

    id = Text(1)


class PortMapping(Message):
    """A host port that leads to a guest port."""

    makes = PortMap
    protocol = Text(1)
    host_port = UInt32(2)
    vm_port = UInt32(3)
    host_address = Text(4)


class GpuSpec(Message):
    """One PCI device."""

    slot = Text(1)


class GpuConfig(Message):
    """Which GPUs to pass through."""

    gpus = Repeated(1, GpuSpec, most=64)
    attach_mode = Text(2)


class NetworkingConfig(Message):
    """One network card."""

    mode = Text(1)
    bridge_name = Text(2, optional=True)


class VmConfiguration(Message):
    """The request of CreateVm and the `configuration` of a VM."""

    makes = Configuration
    name = Text(1)
    image = Text(2)
    compose_file = Text(3)
    vcpu = UInt32(4)
    memory = UInt32(5)
    disk_size = UInt32(6)
    ports = Repeated(7, PortMapping, most=100)
    encrypted_env = HexBytes(8)
    app_id = Text(9, optional=True)
    user_config = Text(10)
    hugepages = Flag(11)
    pin_numa = Flag(12)
    gpus = Nested(13, GpuConfig)
    kms_urls = Repeated(14, Text(0), most=16)
    gateway_urls = Repeated(15, Text(0), most=16)
    stopped = Flag(16)
    no_tee = Flag(17)
    networking = Nested(18, NetworkingConfig)
    networks = Repeated(19, NetworkingConfig, most=8)
    simulated_tee = Text(21, optional=True)


class UpdateVmRequest(Message):
    """The request of UpdateVm and UpgradeApp; lists change only with their flag."""

    makes = Change
    id = Text(1)
    compose_file = Text(2)
    encrypted_env = HexBytes(3)
    user_config = Text(4)
    update_ports = Flag(5)
    ports = Repeated(7, PortMapping, most=100)
    update_kms_urls = Flag(8)
    kms_urls = Repeated(9, Text(0), most=16)
    update_gateway_urls = Flag(10)
    gateway_urls = Repeated(11, Text(0), most=16)
    gpus = Nested(13, GpuConfig)
    vcpu = UInt32(14, optional=True)
    memory = UInt32(15, optional=True)
    disk_size = UInt32(16, optional=True)
    image = Text(17, optional=True)
    no_tee = Flag(18, optional=True)
    update_networking = Flag(19)
    networks = Repeated(20, NetworkingConfig, most=8)


class ResizeVmRequest(Message):
    """The request of ResizeVm: at least one of the four."""

    makes = Change
    id = Text(1)
    vcpu = UInt32(2, optional=True)
    memory = UInt32(3, optional=True)
    disk_size = UInt32(4, optional=True)
    image = Text(5, optional=True)


class ComposeHash(Message):
    """A compose hash in lower-case hex."""

    hash = Text(1)


class GuestEvent(Message):
    """Something that happened to a VM; milliseconds since 1970."""

    event = Text(1)
    body = Text(2)
    timestamp = UInt64(3)


class NetworkInterface(Message):
    """A VM's network card; `backend` is slirp, tap_bridge or custom."""

    mode = Text(1)
    backend = Text(2)
    mac = Text(3)
    bridge_name = Text(4, optional=True)
    netdev_id = Text(5, optional=True)


class VmInfo(Message):
    """A VM as lists and details show it."""

    id = Text(1)
    name = Text(2)
    status = Text(3)
    uptime = Text(4)
    app_url = Text(5, optional=True)
    app_id = Text(6)
    instance_id = Text(7, optional=True)
    configuration = Nested(8, VmConfiguration)
    exited_at = Text(9, optional=True)
    boot_progress = Text(10)
    boot_error = Text(11)
    shutdown_progress = Text(12)
    image_version = Text(13)
    events = Repeated(14, GuestEvent)
    interfaces = Repeated(15, NetworkInterface)
    # Beyond dstack's message, so that a client need not parse words: milliseconds since 1970, and
    # which TEE is simulated, if one is.
    started_at = UInt64(1001, optional=True)
    stopped_at = UInt64(1002, optional=True)
    simulated_tee = Text(1003, optional=True)


class StatusRequest(Message):
    """The request of Status."""

    makes = StatusQuery
    ids = Repeated(1, Text(0), most=10_000)
    brief = Flag(2)
    keyword = Text(3)
    page = UInt32(4)
    page_size = UInt32(5)


class StatusResponse(Message):
    """The VMs found; `total` counts them before paging."""

    vms = Repeated(1, VmInfo)
    port_mapping_enabled = Flag(2)
    total = UInt32(3)


class GetInfoResponse(Message):
    """One VM, if there is one."""

    found = Flag(1)
    info = Nested(2, VmInfo)


class ImageInfo(Message):
    """An image; `description` is its metadata as JSON text."""

    name = Text(1)
    description = Text(2)
    version = Text(3)
    is_dev = Flag(4)


class ImageListResponse(Message):
    """The images that can be booted."""

    images = Repeated(1, ImageInfo)


class VersionResponse(Message):
    """The service's version; `rev` like git:<sha>."""

    version = Text(1)
    rev = Text(2)


class KmsSettings(Message):
    """Where guests find their KMS."""

    url = Text(1)
    urls = Repeated(2, Text(0))


class GatewaySettings(Message):
    """Where guests find a gateway."""

    url = Text(1)
    base_domain = Text(2)
    port = UInt32(3)
    agent_port = UInt32(4)
    urls = Repeated(5, Text(0))


class ResourcesSettings(Message):
    """The limits of this host."""

    max_cvm_number = UInt32(1)
    max_allocable_vcpu = UInt32(2)
    max_allocable_memory_in_mb = UInt32(3)


class NetworkingSettings(Message):
    """The network cards that a VM may ask for."""

    supported_modes = Repeated(1, Text(0))
    default_mode = Text(2)
    default_bridge = Text(4)


class GetMetaResponse(Message):
    """What a client needs to know of this VMM."""

    kms = Nested(1, KmsSettings)
    gateway = Nested(2, GatewaySettings)
    resources = Nested(3, ResourcesSettings)
    networking = Nested(4, NetworkingSettings)


class AppId(Message):
    """An app's id: 20 bytes."""

    app_id = HexBytes(1)


class PublicKeyResponse(Message):
    """The X25519 key that an app's variables are encrypted to, signed by its KMS; seconds since 1970."""

    public_key = HexBytes(1)
    signature = HexBytes(2)
    timestamp = UInt64(3)
    signature_v1 = HexBytes(4)


class GpuInfo(Message):
    """A GPU of this host; `is_free` says whether a VM could be started with it now."""

    slot = Text(1)
    product_id = Text(2)
    description = Text(3)
    is_free = Flag(4)


class ListGpusResponse(Message):
    """The GPUs that VMs may be given."""

    gpus = Repeated(1, GpuInfo)
    allow_attach_all = Flag(2)


class ReloadVmsResponse(Message):
    """How many VMs were imported, read again and dropped."""

    loaded = UInt32(1)
    updated = UInt32(2)
    removed = UInt32(3)


class DhcpLeaseRequest(Message):
    """The address that a DHCP server gave to a network card."""

    mac = Text(1)
    ip = Text(2)


class ProcessInfo(Message):
    """A process of a VM; status is running, stopped, exited(N) or error(text)."""

    id = Text(1)
    name = Text(2)
    status = Text(3)
    pid = UInt32(4, optional=True)
    command = Text(5)
    note = Text(6)


class SvListResponse(Message):
    """The processes that belong to VMs."""

    processes = Repeated(1, ProcessInfo)
