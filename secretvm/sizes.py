"""The sizes that VMs of this interface come in (secretvm.md section 2)."""

from __future__ import annotations

from typing import Any

from core.config import Config
from core.config_secretvm import VmTypeConfig
from core.errors import Invalid

PLATFORMS = ("tdx", "sev")
# No size is older than this interface; the documents want a moment all the same.
_SINCE = "2026-01-01T00:00:00.000Z"


def find(config: Config, type_id: str) -> VmTypeConfig:
    """A size by its id; Invalid when there is none, or when this host has no room for it at all."""
    known = {each.id: each for each in config.secretvm.vm_types}
    if type_id not in known:
        raise Invalid.field("vmTypeId", f"must be one of {', '.join(known)}")
    if not fits(config, known[type_id]):
        raise Invalid.field("vmTypeId", f"{type_id} is larger than this host allows")
    return known[type_id]


def fits(config: Config, size: VmTypeConfig) -> bool:
    """Whether this host could run a VM of that size with nothing else running."""
    cvm = config.cvm
    return size.cpu <= cvm.max_allocable_vcpu and size.ram * 1024 <= cvm.max_allocable_memory_in_mb


def price(config: Config, size: VmTypeConfig) -> float:
    """US dollars an hour; nothing while nobody is billed."""
    return size.price_per_hour if config.billing.enabled else 0.0


def described(config: Config, size: VmTypeConfig) -> dict[str, Any]:
    """The vmType object of a size."""
    return {
        "id": size.id,
        "type": size.id,
        "cpu": size.cpu,
        "ram": size.ram,
        "disk": size.disk,
        "traffic": size.traffic,
        "pricePerHour": price(config, size),
        "createdAt": _SINCE,
        "updatedAt": _SINCE,
    }


def listed(config: Config) -> list[dict[str, Any]]:
    """All sizes, with whether this host has room for them."""
    return [
        {
            **described(config, each),
            "platforms": list(PLATFORMS),
            "available": fits(config, each),
        }
        for each in config.secretvm.vm_types
    ]


def of_shape(config: Config, vcpu: int, memory_mb: int) -> VmTypeConfig | None:
    """The size that a VM made elsewhere happens to have."""
    shapes = {(each.cpu, each.ram * 1024): each for each in reversed(config.secretvm.vm_types)}
    return shapes.get((vcpu, memory_mb))
