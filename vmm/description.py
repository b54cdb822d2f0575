"""A VM as lists and details show it (VmInfo of vmm.md section 3): its row, and whether its files are there."""

from __future__ import annotations

import time
from types import SimpleNamespace
from typing import Any
from urllib.parse import urlsplit

from core.config import Config
from core.config_cvm import NetworkingConfig
from core.errors import Invalid
from image.manifest import METADATA
from models.vm import Vm
from vmm.lifecycle import Observed, Wished, status
from vmm.network import check_nics, mac_address

# dstack's names for who stands behind a card.
BACKENDS = {"user": "slirp", "bridge": "tap_bridge"}


def describe(vm: Vm | SimpleNamespace, config: Config, *, brief: bool) -> dict[str, Any]:
    """The fields of VmInfo of a row, read as an object or plainly; `brief` leaves the configuration out."""
    now = time.time_ns() // 1_000_000
    is_up = vm.observed == Observed.ALIVE and vm.started_ms is not None
    return {
        "id": vm.id,
        "name": vm.name,
        "status": status_of(vm, config),
        "uptime": duration(now - vm.started_ms) if is_up and vm.started_ms else "never",
        "app_url": _app_url(vm, config),
        "app_id": vm.app_id,
        "instance_id": vm.instance_id,
        "configuration": None if brief else _configuration(vm),
        "exited_at": "never" if is_up or not vm.stopped_ms else duration(now - vm.stopped_ms),
        "boot_progress": vm.boot_progress,
        "boot_error": vm.boot_error,
        "shutdown_progress": vm.shutdown_progress,
        "image_version": vm.image_version,
        "events": [
            {"event": each.event, "body": each.body, "timestamp": each.timestamp_ms}
            for each in vm.events
        ],
        "interfaces": _interfaces(vm, config.cvm.networking),
        "started_at": vm.started_ms,
        "stopped_at": vm.stopped_ms,
        "simulated_tee": vm.simulated_tee,
    }


def duration(milliseconds: int) -> str:
    """Whole seconds as `1day 2h 3m 4s`: the largest unit first, none that is zero."""
    seconds = max(0, milliseconds // 1000)
    days, rest = divmod(seconds, 86_400)
    parts = [f"{days}day{'s' if days > 1 else ''}"] if days else []
    for unit, size in (("h", 3600), ("m", 60), ("s", 1)):
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count}{unit}")
    return " ".join(parts) or "0s"


def status_of(vm: Vm | SimpleNamespace, config: Config) -> str:
    """The status word; a VM at rest whose folder or image cannot be read is `unknown`."""
    at_rest = vm.observed == Observed.ABSENT and vm.wished != Wished.REMOVED
    if at_rest and ("unreadable" in vm.options or not _has_files(vm, config)):
        return "unknown"
    return status(vm.wished, vm.observed, silent=vm.silent_ms is not None)


def _has_files(vm: Vm | SimpleNamespace, config: Config) -> bool:
    # A VM that never ran has nothing to lose in a folder: its start makes one.
    has_folder = vm.stopped_ms is None or (config.run_path / vm.id).is_dir()
    return has_folder and (config.image.path / vm.image / METADATA).is_file()


def _interfaces(vm: Vm | SimpleNamespace, node: NetworkingConfig) -> list[dict[str, Any]]:
    try:
        nics = check_nics(vm.options.get("networking"), vm.options.get("networks") or [], node)
    except Invalid:  # the configuration has changed since, and the next start is refused
        return []
    return [
        {
            "mode": nic.mode,
            "backend": BACKENDS.get(nic.mode, "custom"),
            "mac": mac_address(vm.id, index, node.mac_prefix),
            "bridge_name": nic.bridge or None,
            "netdev_id": f"net{index}",
        }
        for index, nic in enumerate(nics)
    ]


def _app_url(vm: Vm | SimpleNamespace, config: Config) -> str | None:
    """Where the app's agent is reached: by its gateway when it has one, else by a host port."""
    agent_port = config.gateway.agent_port
    if vm.options.get("gateway") and vm.instance_id:
        host = f"{vm.instance_id}-{agent_port}.{_gateway(vm, config)}"
        return f"https://{host.removesuffix(':443')}"
    for port in vm.ports:
        if port.vm_port == agent_port and port.protocol == "tcp":
            address = "127.0.0.1" if port.host_address in ("0.0.0.0", "::") else port.host_address
            host = f"[{address}]" if ":" in address else address
            return f"http://{host}:{port.host_port}/"
    return None


def _gateway(vm: Vm | SimpleNamespace, config: Config) -> str:
    for url in (vm.options.get("gateway_urls") or [])[:1]:
        parts = urlsplit(url)
        return f"{parts.hostname}:{parts.port or 443}"
    return f"{config.gateway.base_domain}:{config.gateway.port}"


def _configuration(vm: Vm | SimpleNamespace) -> dict[str, Any]:
    return {
        "name": vm.name,
        "image": vm.image,
        "compose_file": vm.compose_file,
        "vcpu": vm.vcpu,
        "memory": vm.memory_mb,
        "disk_size": vm.disk_gb,
        "ports": [
            {
                "protocol": port.protocol,
                "host_port": port.host_port,
                "vm_port": port.vm_port,
                "host_address": port.host_address,
            }
            for port in vm.ports
        ],
        "encrypted_env": vm.encrypted_env,
        "app_id": vm.app_id,
        "user_config": vm.user_config,
        "hugepages": vm.hugepages,
        "pin_numa": vm.pin_numa,
        "gpus": vm.options.get("gpus"),
        "kms_urls": vm.options.get("kms_urls", []),
        "gateway_urls": vm.options.get("gateway_urls", []),
        "stopped": vm.wished != "running",
        "no_tee": vm.no_tee,
        "networking": vm.options.get("networking"),
        "networks": vm.options.get("networks", []),
        "simulated_tee": vm.simulated_tee,
    }
