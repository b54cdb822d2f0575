"""The sizes of VM that this host gives, which of them a run or fleet may have, and how they are offered (pure).

Source: runs.md section 5.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

from core.config import Config
from core.config_runs import OffersConfig
from runs.specs import Spec

# What clients fill in where a user wished nothing.
DEFAULT_CPUS = 2
DEFAULT_MEMORY_GB = 8.0
DISK_GB = 100
BACKEND = "remote"
REGION = "local"


@dataclass(frozen=True)
class Size:
    """One size of VM."""

    name: str
    cpu: int
    memory_mib: int
    disk_gb: int
    price: float

    def as_json(self) -> Spec:
        """What is kept of it with an instance."""
        return asdict(self)


@dataclass(frozen=True)
class Room:
    """What one VM, or all together, can have of this host."""

    cpus: int
    memory_mib: int


def room_of(config: Config) -> Room:
    """What the VMs of runs can have of this host: what it has, or what its owner allows."""
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2**20
    return Room(
        min(os.cpu_count() or 1, config.cvm.max_allocable_vcpu),
        min(memory, config.cvm.max_allocable_memory_in_mb),
    )


def sizes_of(config: OffersConfig, room: Room) -> list[Size]:
    """The sizes that the host can give, the smallest first."""
    given = [
        Size(each.name, each.cpu, int(each.memory_gb * 1024), each.disk_gb, each.price)
        for each in config.sizes
    ]
    found = given or list(_usual_sizes(room))
    fitting = [
        each for each in found if each.cpu <= room.cpus and each.memory_mib <= room.memory_mib
    ]
    return sorted(fitting, key=lambda size: (size.price, size.cpu, size.memory_mib, size.name))


def _usual_sizes(room: Room) -> Iterator[Size]:
    cpus = 1
    while cpus <= room.cpus:
        for each in (1, 2, 4, 8):
            memory_gb = cpus * each
            yield Size(f"cpu{cpus}-mem{memory_gb}", cpus, memory_gb * 1024, DISK_GB, 0.0)
        cpus *= 2


def clip(resources: Spec, known: Sequence[Size], *, vendor: str | None = None) -> Spec:
    """Resources whose untouched default minima are no more than the sizes that the host gives.

    A client fills them in before it sends, so that they cannot be told from a wish.  GPUs of no vendor are `vendor`'s.
    """
    found = copy.deepcopy(resources)
    cpus, memory, disk = found["cpu"]["count"], found["memory"], found["disk"]
    if cpus == {"min": DEFAULT_CPUS, "max": None}:
        cpus["min"] = min(DEFAULT_CPUS, max((size.cpu for size in known), default=DEFAULT_CPUS))
    if memory == {"min": DEFAULT_MEMORY_GB, "max": None}:
        most = [size.memory_mib / 1024 for size in known if _within(size.cpu, cpus)]
        memory["min"] = min(DEFAULT_MEMORY_GB, max(most, default=DEFAULT_MEMORY_GB))
    if disk is not None and disk["size"] == {"min": float(DISK_GB), "max": None}:
        disk["size"]["min"] = float(min(DISK_GB, max((s.disk_gb for s in known), default=DISK_GB)))
    gpu = found["gpu"]
    if gpu is not None and gpu["vendor"] is None and gpu["count"]["max"] != 0:
        gpu["vendor"] = vendor
    return found


def fits(size: Size, resources: Spec, *, max_price: float | None = None) -> bool:
    """Whether a VM of a size meets requirements; a GPU is never there."""
    gpu, disk = resources["gpu"], resources["disk"]
    return (
        _within(size.cpu, resources["cpu"]["count"])
        and resources["cpu"]["arch"] in (None, "x86")
        and _within(size.memory_mib / 1024, resources["memory"])
        and (disk is None or _within(size.disk_gb, disk["size"]))
        and (gpu is None or not gpu["count"]["min"])
        and (max_price is None or size.price <= max_price)
    )


def _within(value: float, bounds: Spec) -> bool:
    least, most = bounds["min"], bounds["max"]
    return (least is None or value >= least) and (most is None or value <= most)


def serves(configuration: Spec) -> bool:
    """Whether the placement that a run or fleet asks for can be on this host at all."""
    wanted = (
        (configuration.get("backends"), BACKEND),
        (configuration.get("regions"), REGION),
    )
    return (
        all(listed is None or ours in listed for listed, ours in wanted)
        and not configuration.get("availability_zones")
        and not configuration.get("reservation")
        and configuration.get("spot_policy") != "spot"
    )


def candidates(configuration: Spec, resources: Spec, known: Sequence[Size]) -> list[Size]:
    """The sizes that a run or fleet may have, the best first."""
    if not serves(configuration):
        return []
    types, most = configuration.get("instance_types"), configuration.get("max_price")
    return [
        size
        for size in known
        if fits(size, resources, max_price=most) and (types is None or size.name in types)
    ]


def holds(room: Room, size: Size, nodes: int) -> bool:
    """Whether the host could run so many VMs of a size at once."""
    return size.cpu * nodes <= room.cpus and size.memory_mib * nodes <= room.memory_mib


def resources_of(size: Spec) -> Spec:
    """What an offer or an instance says of a size."""
    return {
        "name": size["name"],
        "resources": {
            "cpus": size["cpu"],
            "memory_mib": size["memory_mib"],
            "gpus": [],
            "spot": False,
            "disk": {"size_mib": size["disk_gb"] * 1024},
            "cpu_arch": "x86",
            "description": "",
        },
    }


def offer(size: Spec, availability: str = "available") -> Spec:
    """A size as an offer."""
    return {
        "backend": BACKEND,
        "instance": resources_of(size),
        "region": REGION,
        "price": size["price"],
        "backend_data": {},
        "availability": availability,
        "availability_zones": None,
        "instance_runtime": "shim",
        "blocks": 1,
        "total_blocks": 1,
    }
