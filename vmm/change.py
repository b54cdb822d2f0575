"""A VM's configuration with a change applied (UpdateVm and ResizeVm of vmm.md section 4; pure)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from core.errors import Invalid
from models.vm import Vm
from vmm.lifecycle import is_at_rest
from vmm.schemas import Change, Configuration, PortMap

# What decides the machine itself changes only while there is none.
RESOURCES = ("vcpu", "memory", "disk_size", "image")


def configuration_of(vm: Vm) -> Configuration:
    """The configuration that would make this very VM."""
    return Configuration(
        name=vm.name,
        image=vm.image,
        compose_file=vm.compose_file,
        vcpu=vm.vcpu,
        memory=vm.memory_mb,
        disk_size=vm.disk_gb,
        ports=[
            PortMap(port.protocol, port.host_port, port.vm_port, port.host_address)
            for port in vm.ports
            if not port.own
        ],
        encrypted_env=vm.encrypted_env,
        app_id=vm.app_id,
        user_config=vm.user_config,
        hugepages=vm.hugepages,
        pin_numa=vm.pin_numa,
        gpus=vm.options.get("gpus"),
        kms_urls=vm.options.get("kms_urls", []),
        gateway_urls=vm.options.get("gateway_urls", []),
        no_tee=vm.no_tee,
        networking=vm.options.get("networking"),
        networks=vm.options.get("networks", []),
        simulated_tee=vm.simulated_tee,
    )


def changed(vm: Vm, change: Change) -> Configuration:
    """The configuration after the change, whose values are still to be checked like those of a new VM.

    Invalid when the change needs a stopped VM and this one is not, or makes a disk smaller.
    """
    before = configuration_of(vm)
    after = replace(before, **_given(change))
    if change.update_networking:
        after = replace(after, networking=None)
    if change.no_tee is not None:
        after = replace(after, no_tee=change.no_tee, simulated_tee=None)
    for name in RESOURCES:
        if getattr(after, name) != getattr(before, name) and not is_at_rest(vm.wished, vm.observed):
            raise Invalid.field(name, "can be changed only while the VM is stopped; stop it first")
    if after.disk_size < before.disk_size:
        raise Invalid.field("disk_size", f"can only grow; it is {before.disk_size} GB")
    return after


def _given(change: Change) -> dict[str, Any]:
    texts = ("compose_file", "encrypted_env", "user_config")
    values: dict[str, Any] = {
        name: getattr(change, name) for name in texts if getattr(change, name)
    }
    for name in (*RESOURCES, "gpus"):
        if getattr(change, name) is not None:
            values[name] = getattr(change, name)
    for name, flag in (
        ("ports", change.update_ports),
        ("kms_urls", change.update_kms_urls),
        ("gateway_urls", change.update_gateway_urls),
        ("networks", change.update_networking),
    ):
        if flag:
            values[name] = getattr(change, name)
    return values
