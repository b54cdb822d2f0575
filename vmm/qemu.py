"""A VM and the host's facts -> QEMU's argument vector (pure; golden files in tests/golden/qemu).

Source of the order: vmm.md section 8.  Device order fixes the ACPI tables and with them what a TEE
measures, so it never changes without a new version of the measured configuration.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from vmm.host import Account
from vmm.network import Port

SANDBOX = "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny"
# QEMU itself starts the setuid bridge helper.
SANDBOX_WITH_HELPER = "on,obsolete=deny,resourcecontrol=deny"
# AMD's policy word: SMT allowed, the reserved bit that must be set; no debugging, no migration.
SNP_POLICY = 0x30000
# Where a VM's huge pages come from (vmm.md section 8).
HUGE_PAGES = "/dev/hugepages"


@dataclass(frozen=True)
class UserCard:
    """A network card in user mode; `ports` are on the first one only."""

    mac: str
    ports: tuple[Port, ...] = ()
    net: str = "10.0.2.0/24"
    dhcp_start: str = "10.0.2.10"
    restrict: bool = False

    def netdev(self, index: int) -> str:
        """The value of -netdev."""
        restrict = "yes" if self.restrict else "no"
        value = f"user,id=net{index},net={self.net},dhcpstart={self.dhcp_start},restrict={restrict}"
        for port in self.ports:
            value += (
                f",hostfwd={port.protocol}:{port.host_address}:{port.host_port}-:{port.vm_port}"
            )
        return value


@dataclass(frozen=True)
class BridgeCard:
    """A card on a host bridge, through qemu-bridge-helper."""

    mac: str
    bridge: str

    def netdev(self, index: int) -> str:
        """The value of -netdev."""
        return f"bridge,id=net{index},br={self.bridge}"


@dataclass(frozen=True)
class PasstCard:
    """A card whose other end is a passt process listening on a socket."""

    mac: str
    socket: Path

    def netdev(self, index: int) -> str:
        """The value of -netdev."""
        path = option_value(self.socket)
        return f"stream,id=net{index},server=off,addr.type=unix,addr.path={path}"


@dataclass(frozen=True)
class CustomCard:
    """A card whose -netdev the node's configuration gives; `{id}` stands for its id."""

    mac: str
    line: str

    def netdev(self, index: int) -> str:
        """The value of -netdev."""
        return self.line.replace("{id}", f"net{index}")


Card = UserCard | BridgeCard | PasstCard | CustomCard


@dataclass(frozen=True)
class Tdx:
    """An Intel TDX guest; `mrconfigid` has 48 bytes, a `qgs_port` of 0 asks for no quote service."""

    mrconfigid: bytes | None = None
    qgs_port: int = 0


@dataclass(frozen=True)
class Snp:
    """An AMD SEV-SNP guest; `host_data` has 32 bytes, the two numbers are QEMU's own word."""

    host_data: bytes
    cbitpos: int
    reduced_phys_bits: int


@dataclass(frozen=True)
class Share:
    """How the guest gets its files: `vhd` (a FAT image), `9p` or `vvfat` (a folder)."""

    mode: str
    path: Path
    readonly: bool = True


@dataclass(frozen=True)
class NumaNode:
    """Memory of one host NUMA node in huge pages: its number, the guest's CPUs on it, whole GiB."""

    host_node: int
    first_cpu: int
    last_cpu: int
    memory_gib: int


@dataclass(frozen=True)
class Gpu:
    """A host PCI device for the guest; `node` is its place in `Machine.numa`."""

    slot: str
    node: int = 0


@dataclass(frozen=True)
class Machine:
    """All that decides the command line of a VM; paths are absolute.

    `cid` is the vsock number; without one the two virtio-serial ports of `channel` stand in its place.
    """

    vm_id: str
    qemu: str
    accel: str
    cpu: str
    vcpu: int
    memory_mb: int
    kernel: Path
    initrd: Path
    cmdline: str
    rootfs: Path | None
    data_disk: Path
    share: Share
    serial_log: Path
    qmp_socket: Path
    host_socket: Path
    guest_socket: Path
    cards: tuple[Card, ...]
    sys_vendor: str = ""
    product_name: str = ""
    tee: Tdx | Snp | None = None
    firmware: Path | None = None
    cid: int | None = None
    is_dev: bool = False
    swtpm_socket: Path | None = None
    numa: tuple[NumaNode, ...] = ()
    gpus: tuple[Gpu, ...] = ()
    pci_hole64_size: int = 0
    hotplug_off: bool = False
    pinned_cpus: str = ""
    run_as: Account | None = None


def argv(machine: Machine) -> list[str]:
    """The command that runs a machine, option and value on one line each."""
    return [
        *(("taskset", "-c", machine.pinned_cpus) if machine.pinned_cpus else ()),
        *as_account(machine.run_as),
        machine.qemu,
        *_host_side(machine),
        *(("-bios", str(machine.firmware)) if machine.firmware else ()),
        *("-kernel", str(machine.kernel), "-initrd", str(machine.initrd)),
        *_globals(machine),
        *_disks(machine),
        *(part for index, card in enumerate(machine.cards) for part in _card(machine, index, card)),
        *_smbios(machine),
        *_swtpm(machine),
        *_channel(machine),
        *_share(machine),
        *_numa(machine),
        *_machine(machine),
        *_gpus(machine),
        *_beside_dstack(machine),
        *("-smp", str(machine.vcpu), "-m", str(machine.memory_mb)),
        *("-append", machine.cmdline),
        *("-sandbox", SANDBOX_WITH_HELPER if _has_bridge(machine) else SANDBOX),
    ]


def as_account(account: Account | None) -> tuple[str, ...]:
    """What stands before a command that another user runs.

    setpriv becomes that command, so process, lock and signals stay the same; sudo would stand between.
    """
    if account is None:
        return ()
    return ("setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--init-groups", "--")


def option_value(path: Path) -> str:
    """A path inside a QEMU option: a comma there is written twice."""
    return str(path).replace(",", ",,")


def _host_side(machine: Machine) -> list[str]:
    accel = "tcg,thread=multi" if machine.accel == "tcg" else machine.accel
    log = option_value(machine.serial_log)
    # Only a dev image has somebody to type to; QMP says which pty it is.
    console = (
        f"pty,id=com0,logfile={log},logappend=on"
        if machine.is_dev
        else f"file,id=com0,path={log},append=on"
    )
    return [
        *("-name", machine.vm_id, "-nodefaults", "-no-user-config", "-no-reboot", "-nographic"),
        *("-accel", accel, "-cpu", machine.cpu),
        *("-chardev", console),
        *("-serial", "chardev:com0"),
        *("-qmp", f"unix:{option_value(machine.qmp_socket)},server=on,wait=off"),
    ]


def _globals(machine: Machine) -> list[str]:
    options = []
    if machine.hotplug_off:
        options += ["-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off"]
    if machine.pci_hole64_size:
        options += ["-global", f"q35-pcihost.pci-hole64-size={machine.pci_hole64_size:#x}"]
    return options


def _virtio(machine: Machine, device: str) -> list[str]:
    # An SNP guest's memory is private: its devices must go through the bounce buffers.
    suffix = ",disable-legacy=on,iommu_platform=true" if isinstance(machine.tee, Snp) else ""
    return ["-device", device + suffix]


def _disks(machine: Machine) -> list[str]:
    options = []
    if machine.rootfs:
        root = option_value(machine.rootfs)
        options += ["-drive", f"file={root},if=none,id=hd0,format=raw,readonly=on"]
        options += _virtio(machine, "virtio-blk-pci,drive=hd0")
    data = option_value(machine.data_disk)
    options += ["-drive", f"file={data},if=none,id=hd1,format=qcow2,discard=unmap"]
    options += _virtio(machine, "virtio-blk-pci,drive=hd1")
    return options


def _card(machine: Machine, index: int, card: Card) -> list[str]:
    device = f"virtio-net-pci,netdev=net{index},mac={card.mac}"
    if machine.tee is None:
        # No option ROM: nobody boots from the network, and it costs time.
        device += ",romfile="
    return ["-netdev", card.netdev(index), *_virtio(machine, device)]


def _smbios(machine: Machine) -> list[str]:
    values = {"manufacturer": machine.sys_vendor, "product": machine.product_name}
    texts = [f"{key}={value.replace(',', ',,')}" for key, value in values.items() if value]
    return ["-smbios", ",".join(["type=1", *texts])] if texts else []


def _swtpm(machine: Machine) -> list[str]:
    if machine.swtpm_socket is None:
        return []
    return [
        *("-chardev", f"socket,id=chrtpm,path={option_value(machine.swtpm_socket)}"),
        *("-tpmdev", "emulator,id=tpm0,chardev=chrtpm"),
        *("-device", "tpm-tis,tpmdev=tpm0"),
    ]


def _channel(machine: Machine) -> list[str]:
    if machine.cid is not None:
        return _virtio(machine, f"vhost-vsock-pci,guest-cid={machine.cid}")
    # The place where dstack has its vsock device: after the cards, before the share.
    options = ["-device", "virtio-serial-pci"]
    for name, path in (("host", machine.host_socket), ("guest", machine.guest_socket)):
        options += [
            *("-chardev", f"socket,id={name}0,path={option_value(path)},server=on,wait=off"),
            *("-device", f"virtserialport,chardev={name}0,name=casemate.{name}.0"),
        ]
    return options


def _share(machine: Machine) -> list[str]:
    share = machine.share
    path = option_value(share.path)
    if share.mode == "9p":
        readonly = "on" if share.readonly else "off"
        value = f"local,path={path},mount_tag=host-shared,readonly={readonly}"
        return ["-virtfs", f"{value},security_model=mapped,id=virtfs0"]
    if share.mode == "vvfat":
        value = f"driver=vvfat,node-name=vvfat0,read-only=on,dir={path},label=DSTACKSHR"
        return ["-blockdev", value, *_virtio(machine, "virtio-blk-pci,drive=vvfat0")]
    return [
        *("-drive", f"file={path},if=none,id=hd2,format=raw,readonly=on"),
        *_virtio(machine, "virtio-blk-pci,drive=hd2"),
    ]


def _numa(machine: Machine) -> list[str]:
    return [part for index, node in enumerate(machine.numa) for part in _numa_node(index, node)]


def _numa_node(index: int, node: NumaNode) -> Iterator[str]:
    yield from (
        "-numa",
        f"node,nodeid={index},cpus={node.first_cpu}-{node.last_cpu},memdev=mem{index}",
    )
    backend = f"memory-backend-file,id=mem{index},size={node.memory_gib}G,mem-path={HUGE_PAGES}"
    yield from (
        "-object",
        f"{backend},share=on,prealloc=yes,host-nodes={node.host_node},policy=bind",
    )
    # A bus of its own per node, so that a GPU is near the memory it uses.
    bus = f"pxb-pcie,id=pcie.node{index},bus=pcie.0,addr={0xA + index:#x},numa_node={index}"
    yield from ("-device", f"{bus},bus_nr={5 + index * 20}")


def _machine(machine: Machine) -> list[str]:
    match machine.tee:
        case Tdx():
            kind = "q35,kernel-irqchip=split,confidential-guest-support=tdx,hpet=off"
            return ["-machine", kind, "-object", _tdx_object(machine.tee)]
        case Snp():
            kind = "q35,kernel-irqchip=split,confidential-guest-support=sev0,memory-backend=ram1,hpet=off"
            return [*_snp_objects(machine, machine.tee), "-machine", kind]
        case None:
            # Firmware would cost 3.4 s and prove nothing: the kernel is booted directly.
            irqchip = "" if machine.accel == "tcg" else "kernel-irqchip=split,"
            return ["-machine", f"q35,{irqchip}hpet=off"]


def _tdx_object(tdx: Tdx) -> str:
    value: dict[str, object] = {"qom-type": "tdx-guest", "id": "tdx"}
    if tdx.mrconfigid is not None:
        value["mrconfigid"] = base64.b64encode(tdx.mrconfigid).decode()
    if tdx.qgs_port:
        socket = {"type": "vsock", "cid": "2", "port": str(tdx.qgs_port)}
        value["quote-generation-socket"] = socket
    return json.dumps(value, separators=(",", ":"))


def _snp_objects(machine: Machine, snp: Snp) -> list[str]:
    memory = f"memory-backend-memfd,id=ram1,size={machine.memory_mb}M,share=true,prealloc=false"
    guest = (
        f"sev-snp-guest,id=sev0,policy={SNP_POLICY:#x},sev-device=/dev/sev,kernel-hashes=on,"
        f"host-data={base64.b64encode(snp.host_data).decode()},"
        f"cbitpos={snp.cbitpos},reduced-phys-bits={snp.reduced_phys_bits}"
    )
    return ["-object", memory, "-object", guest]


def _gpus(machine: Machine) -> list[str]:
    if not machine.gpus:
        return []
    options = ["-object", "iommufd,id=iommufd0"]
    for number, gpu in enumerate(machine.gpus, 1):
        bus = f"pcie.node{gpu.node}" if machine.numa else "pcie.0"
        options += ["-device", f"pcie-root-port,id=pci.{number},bus={bus},chassis={number}"]
        options += ["-device", f"vfio-pci,host={gpu.slot},bus=pci.{number},iommufd=iommufd0"]
    return options


def _beside_dstack(machine: Machine) -> list[str]:
    # With a TEE the device list is measured and stays dstack's.
    if machine.tee is not None:
        return []
    return ["-device", "virtio-rng-pci", "-device", "pvpanic"]


def _has_bridge(machine: Machine) -> bool:
    return any(isinstance(card, BridgeCard) for card in machine.cards)
