"""The table [apps] of the configuration: how this host shows itself to clients of Phala Cloud (apps.md section 2)."""

from __future__ import annotations

import re
from dataclasses import dataclass, field

from core.errors import Invalid
from core.urls import is_web_address

KMS_TYPES = ("phala", "ethereum", "base", "legacy")
_SLUG = r"[a-z0-9]([a-z0-9-]{0,62}[a-z0-9])?"
_ADDRESS = r"0x[0-9a-fA-F]{40}"


@dataclass(frozen=True)
class KmsEntryConfig:
    """A KMS that apps may use; on chain when it has a `chain_id`."""

    slug: str = ""
    type: str = "phala"
    url: str = ""
    guest_urls: tuple[
        str, ...
    ] = ()  # default: [cvm] kms_urls for the first entry, `url` for others
    chain_id: int = 0
    contract_address: str = ""
    gateway_app_id: str = ""


@dataclass(frozen=True)
class ChainConfig:
    """Where a chain is asked; `multicall` is the contract's address, "" the usual one, or `none`."""

    chain_id: int = 0
    name: str = ""
    rpc_url: str = field(default="", repr=False)  # may hold a key
    timeout_s: int = 3
    multicall: str = ""


@dataclass(frozen=True)
class InstanceTypeConfig:
    """A name for a size."""

    id: str = ""
    vcpu: int = 1
    memory_mb: int = 2048
    disk_gb: int = 20
    family: str = "cpu"


SIZES = (
    InstanceTypeConfig("tdx.small", 1, 2048),
    InstanceTypeConfig("tdx.medium", 2, 4096),
    InstanceTypeConfig("tdx.large", 4, 8192),
    InstanceTypeConfig("tdx.xlarge", 8, 16384),
)


@dataclass(frozen=True)
class AppsConfig:
    """How this host presents itself as a node with its KMS, chains and sizes."""

    node_id: int = 1
    node_name: str = ""  # default: the VMM's node_name, else the host's name
    region: str = "local"
    device_id: str = ""  # default: drawn once and kept in the data directory
    kms: tuple[KmsEntryConfig, ...] = ()  # default: one, `main`, at kms_url
    chains: tuple[ChainConfig, ...] = ()
    instance_types: tuple[InstanceTypeConfig, ...] = SIZES


def check(apps: AppsConfig) -> None:
    """Raises Invalid naming the key whose value breaks its rule."""
    _check_words(apps)
    _check_distinct(apps)
    for kms in apps.kms:
        for url in (kms.url, *kms.guest_urls):
            if not is_web_address(url):
                raise Invalid.field("apps.kms.url", f"{url!r} must be http:// or https://")
    for chain in apps.chains:
        if not is_web_address(chain.rpc_url):  # not shown: it may hold a key
            raise Invalid.field("apps.chains.rpc_url", "must be http:// or https:// with a host")
    if not apps.instance_types:
        raise Invalid.field("apps.instance_types", "must have at least one; left out, it has four")
    for size in apps.instance_types:
        if min(size.vcpu, size.memory_mb, size.disk_gb) < 1:
            raise Invalid.field("apps.instance_types", f"{size.id}: every size must be at least 1")


def _check_words(apps: AppsConfig) -> None:
    kinds, multicall = "|".join(KMS_TYPES), f"|none|{_ADDRESS}"
    for key, word, form, example in (
        ("apps.node_id", str(apps.node_id), r"[1-9]\d{0,8}", "1"),
        ("apps.device_id", apps.device_id, "|[0-9a-f]{64}", "64 hex digits"),
        *(("apps.kms.slug", each.slug, _SLUG, "main") for each in apps.kms),
        *(("apps.kms.type", each.type, kinds, "phala") for each in apps.kms),
        *(("apps.kms.chain_id", str(each.chain_id), r"\d+", "31337") for each in apps.kms),
        *(
            ("apps.kms.contract_address", each.contract_address, f"|{_ADDRESS}", "0x and 40 digits")
            for each in apps.kms
        ),
        *(("apps.chains.multicall", each.multicall, multicall, "none") for each in apps.chains),
        *(("apps.chains.chain_id", str(each.chain_id), r"[1-9]\d*", "1") for each in apps.chains),
        *(("apps.chains.timeout_s", str(each.timeout_s), r"[1-9]|10", "3") for each in apps.chains),
        *(
            ("apps.instance_types.id", each.id, r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", "tdx.small")
            for each in apps.instance_types
        ),
    ):
        if not re.fullmatch(form, word):
            raise Invalid.field(key, f"{word!r} must look like {example}")


def _check_distinct(apps: AppsConfig) -> None:
    for key, names in (
        ("apps.kms.slug", [each.slug for each in apps.kms]),
        ("apps.chains.chain_id", [str(each.chain_id) for each in apps.chains]),
        ("apps.instance_types.id", [each.id for each in apps.instance_types]),
    ):
        if twice := next((name for name in names if names.count(name) > 1), ""):
            raise Invalid.field(key, f"{twice!r} stands there twice")
