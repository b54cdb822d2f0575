"""The tables [secretvm], [cluster] and [billing] of the configuration: the SecretVM surface."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from core.errors import Invalid


@dataclass(frozen=True)
class VmTypeConfig:
    """A size that tenants may choose: `ram` and `disk` in GB, the price in US dollars."""

    id: str = ""
    cpu: int = 1
    ram: int = 1
    disk: int = 10
    traffic: str = ""
    price_per_hour: float = 0.0


@dataclass(frozen=True)
class ModelPriceConfig:
    """What a hosted language model costs, as `GET /api/pricing` tells it."""

    key: str = ""
    name: str = ""
    input_price: float = 0.0
    output_price: float = 0.0


SIZES = (
    VmTypeConfig("small", 1, 2, 20, "", 0.03),
    VmTypeConfig("medium", 2, 4, 40, "", 0.06),
    VmTypeConfig("large", 4, 8, 80, "", 0.12),
    VmTypeConfig("xlarge", 8, 16, 160, "", 0.24),
)


@dataclass(frozen=True)
class SecretVmConfig:
    """What tenants of the SecretVM surface are offered."""

    base_domain: str = ""  # default: [gateway] base_domain
    vm_types: tuple[VmTypeConfig, ...] = SIZES
    creates_per_minute: int = 30  # of one key
    agents: bool = True  # whoever has an Ethereum key may sign requests, and is a tenant by that
    models: tuple[ModelPriceConfig, ...] = ()
    coin_symbol: str = "SCRT"
    coin_price_url: str = ""  # default: the administrator sets the price
    coin_price_interval_s: int = 300


@dataclass(frozen=True)
class ClusterConfig:
    """Where the fronts of clusters listen."""

    address: str = "127.0.0.1"
    ports: tuple[int, int] = (20000, 20999)


@dataclass(frozen=True)
class BillingConfig:
    """Whether projects pay for what they run."""

    enabled: bool = False
    credit: float = 0.0  # US dollars that a project without a balance of its own starts with


def check_sizes(sizes: tuple[VmTypeConfig, ...]) -> None:
    """Invalid unless the sizes can be told apart and a VM can be made of each."""
    names = [each.id for each in sizes]
    for index, size in enumerate(sizes):
        where = f"secretvm.vm_types[{index}]"
        if not re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", size.id) or names.count(size.id) > 1:
            raise Invalid.field(f"{where}.id", "must be 1 to 64 letters, digits, _ . - and its own")
        if min(size.cpu, size.ram, size.disk) < 1:
            raise Invalid.field(where, "needs cpu, ram and disk (GB) of at least 1")
        if not 0 <= size.price_per_hour < 1e6:
            raise Invalid.field(f"{where}.price_per_hour", "must be US dollars, not less than 0")


def check_cluster(cluster: ClusterConfig) -> None:
    """Invalid unless fronts can listen there."""
    try:
        ipaddress.ip_address(cluster.address)
    except ValueError:
        raise Invalid.field("cluster.address", "must be an IP address") from None
    if len(cluster.ports) != 2 or not 1 <= cluster.ports[0] <= cluster.ports[1] <= 65535:
        raise Invalid.field("cluster.ports", "must be the first and the last port: [20000, 20999]")
