"""What this host can and cannot do, each with what to do about it: `casemate doctor`."""

from __future__ import annotations

import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from core.config import Config
from core.errors import CasemateError
from image import registry
from vmm import accel
from vmm.host import Account, tee_platform

GIB = 1024**3
# An image, its packages and a few VMs.
DISK_WANTED_GIB = 5


@dataclass(frozen=True)
class Finding:
    """One fact: `state` is ok, limited (works with less) or missing (something needed is not there)."""

    name: str
    state: str
    what: str
    advice: str = ""


def examine(config: Config, root: Path = Path("/")) -> list[Finding]:
    """Looks at everything once; changes nothing but the remembered KVM probe."""
    return [
        qemu(config),
        *_programs(config),
        _accelerator(config),
        _tee(config, root),
        _vsock(root),
        _huge_pages(root),
        _images(config),
        _disk(config),
    ]


def misfits(config: Config, root: Path = Path("/")) -> list[str]:
    """What a configuration names and this host has not, a sentence each; nothing is changed."""
    networking = config.cvm.networking
    emulator = qemu(config)
    found = [] if emulator.state == "ok" else [f"cvm.qemu_path: {emulator.what}"]
    for bridge in filter(None, (networking.bridge, *networking.bridges)):
        if not (root / "sys/class/net" / bridge / "bridge").exists():
            found.append(f"cvm.networking.bridge: there is no bridge {bridge} on this host")
    if networking.mode == "passt" and not shutil.which("passt"):
        found.append("cvm.networking.mode: passt is not installed (apt-get install passt)")
    if config.cvm.user:
        try:
            Account.of(config.cvm.user)
        except CasemateError as error:
            found.append(error.message)
    htpasswd = config.auth.htpasswd_file
    if htpasswd != Path() and not os.access(htpasswd, os.R_OK):
        found.append(f"auth.htpasswd_file: {htpasswd} cannot be read")
    return found


def qemu(config: Config) -> Finding:
    """QEMU's version, or why there is none."""
    try:
        version = ".".join(map(str, accel.version(config.cvm.qemu_path or "qemu-system-x86_64")))
    except CasemateError as error:
        return Finding("QEMU", "missing", error.message, "apt-get install qemu-system-x86")
    return Finding("QEMU", "ok", version)


def _programs(config: Config) -> list[Finding]:
    vhd, passt = config.cvm.host_share_mode == "vhd", config.cvm.networking.mode == "passt"
    wanted = (
        ("qemu-img", "missing", "data disks", "qemu-utils"),
        ("mcopy", "missing" if vhd else "limited", "the guest's shared disk (vhd)", "mtools"),
        ("haproxy", "limited", "clusters behind a balancer", "haproxy"),
        ("passt", "missing" if passt else "limited", "passt networking", "passt"),
        ("swtpm", "limited", "software TPMs", "swtpm"),
    )
    return [
        Finding(name, "ok", shutil.which(name) or "")
        if shutil.which(name)
        else Finding(name, state, f"not installed: no {use}", f"apt-get install {package}")
        for name, state, use, package in wanted
    ]


def _accelerator(config: Config) -> Finding:
    try:
        with tempfile.TemporaryDirectory() as scratch:
            place = config.data_dir if config.data_dir.is_dir() else Path(scratch)
            found = accel.choose(config.cvm.accel, config.cvm.qemu_path, place)
    except CasemateError as error:
        return Finding("accelerator", "missing", error.message, "set cvm.accel = auto")
    if found.name == "kvm":
        return Finding("accelerator", "ok", "KVM runs code")
    kvm = Path("/dev/kvm")
    advice = "a host with KVM"
    if kvm.exists() and not os.access(kvm, os.R_OK | os.W_OK):
        advice = "adduser USER kvm, and sign in anew"
    return Finding("accelerator", "limited", f"emulation, since {found.why}: VMs are slow", advice)


def _tee(config: Config, root: Path) -> Finding:
    found = tee_platform(config.cvm.platform, root)
    if found:
        return Finding("TEE", "ok", found)
    if config.cvm.simulate:
        return Finding("TEE", "limited", "none; VMs get simulated evidence (cvm.simulate)")
    return Finding(
        "TEE", "limited", "none: VMs need no_tee", "cvm.simulate = true to develop without one"
    )


def _vsock(root: Path) -> Finding:
    device = root / "dev/vhost-vsock"
    if device.exists() and os.access(device, os.R_OK | os.W_OK):
        return Finding("vsock", "ok", str(device))
    return Finding(
        "vsock",
        "limited",
        "no /dev/vhost-vsock: serial channel, no TEE VMs",
        "modprobe vhost_vsock",
    )


def _huge_pages(root: Path) -> Finding:
    total = 0
    for line in (root / "proc/meminfo").read_text().splitlines():
        if line.startswith("HugePages_Total:"):
            total = int(line.split()[1])
    if total:
        return Finding("huge pages", "ok", f"{total} reserved")
    return Finding("huge pages", "limited", "none reserved", "sysctl vm.nr_hugepages=N")


def _images(config: Config) -> Finding:
    names = [image.name for image in registry.list_images(config.image.path)]
    if names:
        return Finding("images", "ok", ", ".join(names))
    return Finding("images", "missing", f"none in {config.image.path}", "casemate image build")


def _disk(config: Config) -> Finding:
    place = config.data_dir
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free / GIB
    state = "ok" if free >= DISK_WANTED_GIB else "limited"
    return Finding("disk", state, f"{free:.1f} GiB free in {place}")
