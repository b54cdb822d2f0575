"""A VM and the host's facts -> QEMU's argument vector (pure; golden files in tests/golden/qemu).

Source of the order: vmm.md section 8.  Device order fixes the ACPI tables and with them what a TEE
measures, so it never changes without a new version of the measured configuration.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from vmm.network import Port


@dataclass(frozen=True)
class Card:
    """A network card in user mode; `ports` are on the first one only."""

    mac: str
    ports: tuple[Port, ...] = ()
    net: str = "10.0.2.0/24"
    dhcp_start: str = "10.0.2.10"
    restrict: bool = False


@dataclass(frozen=True)
class Machine:
    """All that decides the command line of a VM without a TEE; paths are absolute."""

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
    shared_image: Path
    serial_log: Path
    qmp_socket: Path
    host_socket: Path
    guest_socket: Path
    cards: tuple[Card, ...]
    sys_vendor: str = ""
    product_name: str = ""


def argv(machine: Machine) -> list[str]:
    """The command that runs a machine, option and value on one line each."""
    return [
        machine.qemu,
        *_host_side(machine),
        *("-kernel", str(machine.kernel), "-initrd", str(machine.initrd)),
        *_disks(machine),
        *(part for index, card in enumerate(machine.cards) for part in _card(index, card)),
        *_smbios(machine),
        *_channel(machine),
        *_share(machine),
        # Without a TEE the q35 machine boots the kernel directly: firmware costs 3.4 s, proves nothing.
        *(
            "-machine",
            "q35,hpet=off" if machine.accel == "tcg" else "q35,kernel-irqchip=split,hpet=off",
        ),
        *("-device", "virtio-rng-pci", "-device", "pvpanic"),
        *("-smp", str(machine.vcpu), "-m", str(machine.memory_mb)),
        *("-append", machine.cmdline),
        *(
            "-sandbox",
            "on,obsolete=deny,elevateprivileges=deny,spawn=deny,resourcecontrol=deny",
        ),
    ]


def option_value(path: Path) -> str:
    """A path inside a QEMU option: a comma there is written twice."""
    return str(path).replace(",", ",,")


def _host_side(machine: Machine) -> list[str]:
    accel = "tcg,thread=multi" if machine.accel == "tcg" else machine.accel
    return [
        *("-name", machine.vm_id, "-nodefaults", "-no-user-config", "-no-reboot", "-nographic"),
        *("-accel", accel, "-cpu", machine.cpu),
        *("-chardev", f"file,id=com0,path={option_value(machine.serial_log)},append=on"),
        *("-serial", "chardev:com0"),
        *("-qmp", f"unix:{option_value(machine.qmp_socket)},server=on,wait=off"),
    ]


def _disks(machine: Machine) -> list[str]:
    root = (
        [
            *(
                "-drive",
                f"file={option_value(machine.rootfs)},if=none,id=hd0,format=raw,readonly=on",
            ),
            *("-device", "virtio-blk-pci,drive=hd0"),
        ]
        if machine.rootfs
        else []
    )
    data = option_value(machine.data_disk)
    return [
        *root,
        *("-drive", f"file={data},if=none,id=hd1,format=qcow2,discard=unmap"),
        *("-device", "virtio-blk-pci,drive=hd1"),
    ]


def _card(index: int, card: Card) -> list[str]:
    restrict = "yes" if card.restrict else "no"
    netdev = f"user,id=net{index},net={card.net},dhcpstart={card.dhcp_start},restrict={restrict}"
    for port in card.ports:
        address = f"[{port.host_address}]" if ":" in port.host_address else port.host_address
        netdev += f",hostfwd={port.protocol}:{address}:{port.host_port}-:{port.vm_port}"
    # No option ROM: nobody boots from the network, and it costs time.
    device = f"virtio-net-pci,netdev=net{index},mac={card.mac},romfile="
    return ["-netdev", netdev, "-device", device]


def _smbios(machine: Machine) -> list[str]:
    values = {"manufacturer": machine.sys_vendor, "product": machine.product_name}
    texts = [f"{key}={value.replace(',', ',,')}" for key, value in values.items() if value]
    return ["-smbios", ",".join(["type=1", *texts])] if texts else []


def _channel(machine: Machine) -> list[str]:
    # The place where dstack has its vsock device: after the cards, before the share.
    options = ["-device", "virtio-serial-pci"]
    for name, path in (("host", machine.host_socket), ("guest", machine.guest_socket)):
        options += [
            *("-chardev", f"socket,id={name}0,path={option_value(path)},server=on,wait=off"),
            *("-device", f"virtserialport,chardev={name}0,name=casemate.{name}.0"),
        ]
    return options


def _share(machine: Machine) -> list[str]:
    image = option_value(machine.shared_image)
    return [
        *("-drive", f"file={image},if=none,id=hd2,format=raw,readonly=on"),
        *("-device", "virtio-blk-pci,drive=hd2"),
    ]
