"""Makes the things that tests are about: configurations, images, requests and rows."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

from core import config as configuration
from core.config import AuthConfig, Config, ImageConfig
from core.config_cvm import AutoRestartConfig, CvmConfig, PortMappingConfig, PortRange
from image import manifest, registry
from image.registry import Image
from models.vm import Vm
from vmm.lifecycle import Observed, Wished

IMAGE = "tiny-0.5.4"
COMPOSE = '{"docker_compose_file": "services: {}"}'


def config(data_dir: Path, qemu: Path, *, auth: AuthConfig | None = None, **cvm: Any) -> Config:
    """Simulated TEE, ports 1024-65535, no automatic restart, authentication off unless given."""
    settings: dict[str, Any] = {
        "simulate": True,
        "qemu_path": str(qemu),
        "auto_restart": AutoRestartConfig(enabled=False),
        "port_mapping": PortMappingConfig(
            enabled=True, range=(PortRange("tcp", 1024, 65535), PortRange("udp", 1024, 65535))
        ),
    }
    return configuration.check(
        Config(
            data_dir=data_dir,
            run_path=data_dir / "vm",
            image=ImageConfig(path=data_dir / "images"),
            cvm=CvmConfig(**(settings | cvm)),
            auth=auth or AuthConfig(),
        )
    )


def image(folder: Path, name: str = IMAGE, *, kernel: bytes = b"", **metadata: Any) -> Image:
    """Writes an image of a few bytes below `folder`."""
    directory = folder / name
    directory.mkdir(parents=True)
    files = {"kernel": "bzImage", "initrd": "initramfs.cpio.gz", "rootfs": "rootfs.img.verity"}
    for file in files.values():
        (directory / file).write_text(f"the {file} of {name}")
    if kernel:
        (directory / "bzImage").write_bytes(kernel)
    described = {
        **files,
        "version": "0.5.4",
        "shared_ro": True,
        "cmdline": "console=ttyS0 init=/init",
        **metadata,
    }
    manifest.write(directory, described, ("bzImage", "initramfs.cpio.gz"))
    return registry.load(folder, name)


def idle_kernel() -> bytes:
    """A kernel that a real QEMU boots in no time and that does nothing: it halts in its setup code.

    Source: Linux, Documentation/arch/x86/boot.rst (setup header; execution begins at 0x200 of the setup).
    """
    setup = bytearray(1024)
    setup[0x1F1] = 1  # one sector of setup code follows the boot sector
    setup[0x1FE:0x200] = b"\x55\xaa"
    setup[0x200:0x206] = b"\xeb\x66HdrS"  # jump over the header
    setup[0x206:0x208] = (0x0203).to_bytes(2, "little")
    setup[0x211] = 1  # loaded high
    setup[0x22C:0x230] = (0x37FF_FFFF).to_bytes(4, "little")  # where an initrd may end
    setup[0x268:0x26C] = b"\xfa\xf4\xeb\xfd"  # cli; hlt; and back to hlt
    return bytes(setup) + bytes(4096)


def request(**fields: Any) -> dict[str, Any]:
    """The body of a CreateVm that is accepted."""
    wanted = {"name": "web", "image": IMAGE, "compose_file": COMPOSE}
    return {**wanted, "vcpu": 1, "memory": 256, "disk_size": 1, **fields}


def port(host_port: int, vm_port: int = 80, **fields: Any) -> dict[str, Any]:
    """One mapping of such a body."""
    return {"protocol": "tcp", "host_port": host_port, "vm_port": vm_port, **fields}


def vm(**fields: Any) -> Vm:
    """A row of a stopped VM."""
    values: dict[str, Any] = {
        "id": str(uuid.uuid4()),
        "name": "web",
        "app_id": "ab" * 20,
        "image": IMAGE,
        "image_version": "0.5.4",
        "vcpu": 1,
        "memory_mb": 256,
        "disk_gb": 1,
        "no_tee": True,
        "simulated_tee": None,
        "hugepages": False,
        "pin_numa": False,
        "options": {},
        "compose_file": COMPOSE,
        "encrypted_env": b"",
        "user_config": "",
        "wished": Wished.STOPPED,
        "observed": Observed.ABSENT,
        "created_ms": 1_700_000_000_000,
        "restarts": 0,
        "boot_progress": "",
        "boot_error": "",
        "shutdown_progress": "",
    }
    return Vm(**(values | fields))


def behave(folder: Path, **rules: Any) -> None:
    """Tells the stand-in for QEMU, for one VM's folder or for all below it, how to behave."""
    folder.mkdir(parents=True, exist_ok=True)
    # As one step: a stand-in may start just now.
    fresh = folder / "fake.json.new"
    fresh.write_text(json.dumps(rules))
    fresh.rename(folder / "fake.json")
