from __future__ import annotations

import contextlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from core import proc
from core.config_cvm import CvmConfig
from core.errors import Upstream
from core.proc import run
from vmm import qemu, qmp
from vmm.host import Account
from vmm.network import Port, mac_address
from vmm.qemu import (
    BridgeCard,
    CustomCard,
    Gpu,
    Machine,
    NumaNode,
    PasstCard,
    Share,
    Snp,
    Tdx,
    UserCard,
)

VM_ID = "0a1b2c3d-0000-4000-8000-000000000001"
IMAGE = Path("/srv/casemate/images/casemate-0.6.0")
WORK = Path("/srv/casemate/vm") / VM_ID

SIMULATED = Machine(
    vm_id=VM_ID,
    qemu="/usr/bin/qemu-system-x86_64",
    accel="tcg",
    cpu="max,cx16=off",
    vcpu=2,
    memory_mb=2048,
    kernel=IMAGE / "bzImage",
    initrd=IMAGE / "initramfs.cpio.gz",
    cmdline="console=ttyS0 init=/init dstack.rootfs_hash=ab dstack.rootfs_size=1",
    rootfs=IMAGE / "rootfs.img.verity",
    data_disk=WORK / "hda.img",
    share=Share("vhd", WORK / "shared.img"),
    serial_log=WORK / "serial.log",
    qmp_socket=WORK / "qmp.sock",
    host_socket=WORK / "host.sock",
    guest_socket=WORK / "guest.sock",
    cards=(
        UserCard(
            mac_address(VM_ID),
            (Port("tcp", "127.0.0.1", 8080, 80), Port("udp", "0.0.0.0", 5353, 53)),
        ),
    ),
    product_name=CvmConfig().product.product_name,
)
BARE = replace(SIMULATED, cards=(UserCard(mac_address(VM_ID)),), product_name="")
DEV = Path("/srv/casemate/images/casemate-dev-0.6.0")

TDX = replace(
    BARE,
    accel="kvm",
    cpu="host",
    tee=Tdx(b"\1" + bytes(range(32)) + bytes(15), 4050),
    firmware=IMAGE / "ovmf.fd",
    cid=1000,
)

CASES = {
    "simulated-tdx-two-ports": SIMULATED,
    "no-tee": replace(BARE, vcpu=1, memory_mb=256),
    "kvm": replace(SIMULATED, accel="kvm", cpu="host"),
    "dev-image": replace(
        BARE,
        kernel=DEV / "bzImage",
        initrd=DEV / "initramfs.cpio.gz",
        rootfs=None,
        cmdline="console=ttyS0",
    ),
    "comma-in-image-path": replace(
        BARE,
        kernel=Path("/srv/a,b=c/bzImage"),
        initrd=Path("/srv/a,b=c/initramfs.cpio.gz"),
        rootfs=Path("/srv/a,b=c/rootfs.img.verity"),
        sys_vendor="Casemate, Ltd.",
    ),
    "restricted-network": replace(
        BARE,
        cards=(
            UserCard(
                mac_address(VM_ID, 0, "52:54:00"),
                net="10.9.0.0/24",
                dhcp_start="10.9.0.50",
                restrict=True,
            ),
        ),
    ),
    "tdx": TDX,
    "tdx-hugepages-gpus": replace(
        TDX,
        vcpu=8,
        memory_mb=16384,
        numa=(NumaNode(0, 0, 3, 8), NumaNode(1, 4, 7, 8)),
        gpus=(Gpu("0000:3b:00.0"), Gpu("0000:86:00.0", 1)),
        pinned_cpus="0-31",
        pci_hole64_size=1 << 40,
        hotplug_off=True,
    ),
    "sev-snp": replace(
        TDX,
        cpu="EPYC-v4",
        tee=Snp(bytes(range(32)), 51, 1),
        firmware=IMAGE / "ovmf-sev.fd",
    ),
    "bridge": replace(
        SIMULATED, cards=(BridgeCard(mac_address(VM_ID), "br0"), UserCard(mac_address(VM_ID, 1)))
    ),
    "passt": replace(SIMULATED, cards=(PasstCard(mac_address(VM_ID), WORK / "passt.sock"),)),
    "custom": replace(
        SIMULATED, cards=(CustomCard(mac_address(VM_ID), "tap,id={id},ifname=tap7,script=no"),)
    ),
    "9p-share": replace(SIMULATED, share=Share("9p", WORK / "shared")),
    "vvfat-share": replace(SIMULATED, share=Share("vvfat", WORK / "shared")),
    "swtpm-other-user": replace(
        SIMULATED, swtpm_socket=WORK / "swtpm.sock", run_as=Account(990, 991)
    ),
}


def lines(argv: list[str]) -> str:
    """One option a line, with its value."""
    text = argv[0]
    for word in argv[1:]:
        text += f"\n{word}" if word.startswith("-") else f" {word}"
    return f"{text}\n"


@pytest.mark.parametrize("name", CASES)
def test_the_command_line_is_the_golden_one(name: str, golden: Callable[[str, str], None]) -> None:
    golden(f"qemu/{name}.txt", lines(qemu.argv(CASES[name])))


def test_the_same_machine_gives_the_same_command_line() -> None:
    assert qemu.argv(SIMULATED) == qemu.argv(replace(SIMULATED))


def test_kvm_and_tcg_differ_in_nothing_but_accelerator_processor_and_interrupt_controller() -> None:
    tcg, kvm = (qemu.argv(CASES[name]) for name in ("simulated-tdx-two-ports", "kvm"))

    differing = [(one, other) for one, other in zip(tcg, kvm, strict=True) if one != other]

    assert differing == [
        ("tcg,thread=multi", "kvm"),
        ("max,cx16=off", "host"),
        ("q35,hpet=off", "q35,kernel-irqchip=split,hpet=off"),
    ]


# The rest needs KVM, a TEE, a bridge, or a process beside QEMU (docs/hardware.md).
BUILDABLE = [
    name
    for name, machine in CASES.items()
    if machine.accel == "tcg"
    and not machine.run_as
    and all(isinstance(card, UserCard) for card in machine.cards)
]


@pytest.mark.parametrize("name", BUILDABLE)
def test_a_real_qemu_builds_the_machine(name: str, data_dir: Path) -> None:
    machine = CASES[name]
    folder = data_dir / "a,b=c" if "," in str(machine.kernel) else data_dir
    folder.mkdir(exist_ok=True)
    # A setup header as Linux' boot protocol has it, and nothing to run behind it.
    kernel = bytearray(64 * 1024)
    kernel[0x1F1], kernel[0x202:0x208] = 1, b"HdrS\x0c\x02"
    kernel[0x22C:0x230] = b"\xff\xff\xff\x37"  # the initial RAM disk may lie below this
    (folder / "bzImage").write_bytes(kernel)
    (folder / "shared").mkdir()
    for file in ("initramfs.cpio.gz", "rootfs.img.verity", "shared.img"):
        (folder / file).write_bytes(bytes(4096))
    run(["qemu-img", "create", "-q", "-f", "qcow2", folder / "hda.img", "1M"])
    own = replace(
        machine,
        qemu="qemu-system-x86_64",
        memory_mb=64,
        kernel=folder / "bzImage",
        initrd=folder / "initramfs.cpio.gz",
        rootfs=folder / "rootfs.img.verity" if machine.rootfs else None,
        data_disk=folder / "hda.img",
        share=replace(
            machine.share,
            path=folder / ("shared.img" if machine.share.mode == "vhd" else "shared"),
        ),
        serial_log=folder / "serial.log",
        qmp_socket=folder / "qmp.sock",
        host_socket=folder / "host.sock",
        guest_socket=folder / "guest.sock",
        cards=(UserCard(mac_address(VM_ID)),),
    )

    started = proc.start([*qemu.argv(own), "-S"], log=data_dir / "qemu.log")
    try:
        ready = qmp.wait_for_greeting(folder, lambda: started.poll() is None, deadline_s=30)
        assert ready, (data_dir / "qemu.log").read_text()
        assert qmp.execute(folder, "query-name") == {"name": VM_ID}
        with contextlib.suppress(Upstream):  # it may be gone before its answer is
            qmp.execute(folder, "quit")
        assert started.wait(30) == 0
    finally:
        started.kill()
        started.wait()
    assert (data_dir / "qemu.log").read_text() == ""
