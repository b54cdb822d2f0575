"""The tables [secretvm], [cluster] and [billing] of the configuration: the SecretVM surface."""

from __future__ import annotations

from dataclasses import dataclass


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
