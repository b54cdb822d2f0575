"""The tables [runs] and [offers] of the configuration: the dstackai surface (runs.md)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from core.errors import Invalid

# A hundred years.
KEEP_DAYS_MOST = 36_500


@dataclass(frozen=True)
class RunsConfig:
    """How runs are executed."""

    ssh: bool = True
    hostname: str = "127.0.0.1"  # where clients find the forwarded SSH ports
    api_version: str = "0.22.5"  # the level of dstack's interface that is answered
    provisioning_timeout: int = 600  # seconds from a VM's making until its runner speaks
    log_quota: int = 50 * 1024 * 1024  # bytes of output of one job in an hour; takes K, M or G
    keep_days: int = 90  # how long what is over is kept: runs, their logs, instances, events


@dataclass(frozen=True)
class OfferSize:
    """One size of VM; `price` is per hour."""

    name: str = ""
    cpu: int = 1
    memory_gb: float = 1.0
    disk_gb: int = 100
    price: float = 0.0


@dataclass(frozen=True)
class OffersConfig:
    """Which sizes of VM runs may ask for; none: made from what the host has."""

    sizes: tuple[OfferSize, ...] = ()


def check(runs: RunsConfig, offers: OffersConfig) -> None:
    """Invalid naming the key of a value that breaks its rule."""
    if not re.fullmatch(r"\d+\.\d+(\.\d+)?", runs.api_version):
        raise Invalid.field("runs.api_version", "must look like 0.22.5")
    if not re.fullmatch(r"[A-Za-z0-9.:\-]{1,253}", runs.hostname):
        raise Invalid.field("runs.hostname", "must be a host name or address")
    if runs.provisioning_timeout < 1:
        raise Invalid.field("runs.provisioning_timeout", "must be at least 1 second")
    if not 1 <= runs.keep_days <= KEEP_DAYS_MOST:
        raise Invalid.field("runs.keep_days", f"must be 1 to {KEEP_DAYS_MOST} days")
    names = [size.name for size in offers.sizes]
    for size in offers.sizes:
        if not re.fullmatch(r"[A-Za-z0-9._\-]{1,64}", size.name) or names.count(size.name) > 1:
            raise Invalid.field("offers.sizes.name", f"{size.name!r} must be a name of its own")
        if size.cpu < 1 or size.memory_gb <= 0 or size.disk_gb < 1 or size.price < 0:
            raise Invalid.field("offers.sizes", f"{size.name} must have CPU, memory and disk")
