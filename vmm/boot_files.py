"""What a VM's guest is told at boot: the files of its shared folder, written anew at each start.

Names and sizes: vmm.md section 6.  Nothing here is secret to the host but the simulated TEE's seed, which is
worth nothing by design, and the environment, which is encrypted to the guest.
"""

from __future__ import annotations

import json
from typing import Any

from core.config import Config
from models.vm import Vm
from vmm import simulation
from vmm.machine import Plan
from vmm.workdir import WorkDir

SERIAL_API = "serial:casemate.host.0"


def write(workdir: WorkDir, vm: Vm, made: Plan, vm_config: dict[str, Any], config: Config) -> None:
    """Writes every shared file of a VM from its row and plan, and the mirrors of the row itself."""
    record(workdir, vm)
    workdir.share_json(".sys-config.json", _sys_config(vm, made, vm_config, config))
    if vm.simulated_tee:
        workdir.share_json(
            ".tee-simulator.json", simulation.of_guest(config.tee_dir, vm.simulated_tee)
        )
    else:
        workdir.unshare(".tee-simulator.json")


def record(workdir: WorkDir, vm: Vm) -> None:
    """Writes what the row says of a VM: all that ReloadVms reads."""
    workdir.share("app-compose.json", vm.compose_file)
    _share_or_drop(workdir, ".encrypted-env", vm.encrypted_env)
    _share_or_drop(workdir, ".user-config", vm.user_config.encode())
    if not (workdir.shared / ".instance_info").exists():
        workdir.share_json(".instance_info", {"app_id": vm.app_id})
    workdir.mirror("vm-manifest.json", manifest(vm))
    mirror_state(workdir, vm)


def mirror_state(workdir: WorkDir, vm: Vm) -> None:
    """Writes whether the VM should run."""
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
            if not port.own
        ],
        "created_at_ms": vm.created_ms,
        "hugepages": vm.hugepages,
        "pin_numa": vm.pin_numa,
        "gpus": vm.options.get("gpus"),
        "kms_urls": vm.options.get("kms_urls", []),
        "gateway_urls": vm.options.get("gateway_urls", []),
        "no_tee": vm.no_tee,
        "simulated_tee": vm.simulated_tee,
        "networking": vm.options.get("networking"),
        "networks": vm.options.get("networks", []),
    }


def _sys_config(vm: Vm, made: Plan, vm_config: dict[str, Any], config: Config) -> dict[str, object]:
    cvm = config.cvm
    has_vsock = made.machine.cid is not None
    told: dict[str, object] = {
        "kms_urls": vm.options.get("kms_urls") or list(cvm.kms_urls),
        "gateway_urls": vm.options.get("gateway_urls") or list(cvm.gateway_urls),
        "pccs_url": cvm.pccs_url,
        "collateral_urls": {"pccs": cvm.pccs_url},
        "nvidia_attestation_proxy_url": cvm.nvidia_attestation_proxy_url,
        "docker_registry": cvm.docker_registry,
        "host_api_url": f"vsock://2:{config.host_api.port}/api" if has_vsock else SERIAL_API,
        "vm_config": json.dumps(vm_config),
    }
    return told | ({"mr_config": made.mr_config} if made.mr_config else {})


def _share_or_drop(workdir: WorkDir, name: str, content: bytes) -> None:
    if content:
        workdir.share(name, content)
    else:
        workdir.unshare(name)
