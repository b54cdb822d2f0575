"""What a VM's guest is told at boot: the files of its shared folder, written anew at each start.

Names and sizes: vmm.md section 6.  Nothing here is secret to the host but the simulated TEE's seed, which is
worth nothing by design, and the environment, which is encrypted to the guest.
"""

from __future__ import annotations

import json

from core.config import Config
from image.registry import Image
from models.vm import Vm
from vmm import simulation
from vmm.host import Host
from vmm.workdir import WorkDir

MIB = 1024**2


def write(workdir: WorkDir, vm: Vm, image: Image, config: Config, host: Host) -> None:
    """Writes every shared file of a VM from its row, and the mirrors of the row itself."""
    workdir.share("app-compose.json", vm.compose_file)
    _share_or_drop(workdir, ".encrypted-env", vm.encrypted_env)
    _share_or_drop(workdir, ".user-config", vm.user_config.encode())
    if not (workdir.shared / ".instance_info").exists():
        workdir.share_json(".instance_info", {"app_id": vm.app_id})
    workdir.share_json(".sys-config.json", _sys_config(vm, image, config, host))
    if vm.simulated_tee:
        seed = simulation.seed(config.tee_dir)
        workdir.share_json(
            ".tee-simulator.json", {"platform": vm.simulated_tee, "seed": seed.hex()}
        )
    else:
        workdir.unshare(".tee-simulator.json")
    workdir.mirror("vm-manifest.json", manifest(vm))
    workdir.mirror("vm-state.json", {"started": vm.wished == "running"})


def manifest(vm: Vm) -> dict[str, object]:
    """The row as dstack's vm-manifest.json."""
    return {
        "id": vm.id,
        "name": vm.name,
        "app_id": vm.app_id,
        "vcpu": vm.vcpu,
        "memory": vm.memory_mb,
        "disk_size": vm.disk_gb,
        "image": vm.image,
        "port_map": [
            {
                "address": port.host_address,
                "protocol": port.protocol,
                "from": port.host_port,
                "to": port.vm_port,
            }
            for port in vm.ports
        ],
        "created_at_ms": vm.created_ms,
        "hugepages": vm.hugepages,
        "pin_numa": vm.pin_numa,
        "gpus": vm.options.get("gpus"),
        "kms_urls": vm.options.get("kms_urls", []),
        "gateway_urls": vm.options.get("gateway_urls", []),
        "no_tee": vm.no_tee,
        "simulated_tee": vm.simulated_tee,
        "networks": vm.options.get("networks", []),
    }


def _sys_config(vm: Vm, image: Image, config: Config, host: Host) -> dict[str, object]:
    return {
        "kms_urls": vm.options.get("kms_urls") or list(config.cvm.kms_urls),
        "gateway_urls": vm.options.get("gateway_urls") or list(config.cvm.gateway_urls),
        "pccs_url": config.cvm.pccs_url,
        "collateral_urls": {"pccs": config.cvm.pccs_url},
        "docker_registry": config.cvm.docker_registry,
        "host_api_url": "serial:casemate.host.0",
        "vm_config": json.dumps(_vm_config(vm, image, config, host)),
    }


def _vm_config(vm: Vm, image: Image, config: Config, host: Host) -> dict[str, object]:
    # What a verifier needs to compute the launch measurement again (vmm.md section 6).
    return {
        "spec_version": 1,
        "os_image_hash": image.digest,
        "cpu_count": vm.vcpu,
        "memory_size": vm.memory_mb * MIB,
        "qemu_version": ".".join(map(str, host.qemu_version)),
        "pci_hole64_size": config.cvm.qemu_pci_hole64_size,
        "hugepages": vm.hugepages,
        "num_gpus": 0,
        "num_nvswitches": 0,
        "hotplug_off": config.cvm.qemu_hotplug_off,
        "image": vm.image,
        "host_share_mode": config.cvm.host_share_mode,
        "channel": "serial",
    }


def _share_or_drop(workdir: WorkDir, name: str, content: bytes) -> None:
    if content:
        workdir.share(name, content)
    else:
        workdir.unshare(name)
