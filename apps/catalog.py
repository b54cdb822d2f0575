"""What this host offers to clients of the apps interface: its node, KMS entries, sizes and images (apps.md section 2)."""

from __future__ import annotations

import re
import secrets
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from apps.names import hashed
from core.config import Config
from core.config_apps import ChainConfig, InstanceTypeConfig, KmsEntryConfig
from core.files import write_once
from image import registry
from image.registry import Image

RATE = "0"


@dataclass(frozen=True)
class Kms:
    """A KMS that apps of this host may use."""

    slug: str
    type: str
    url: str
    guest_urls: tuple[str, ...]
    chain_id: int | None
    contract_address: str | None
    gateway_app_id: str | None

    @classmethod
    def of(cls, entry: KmsEntryConfig, guest_urls: tuple[str, ...]) -> Kms:
        """The entry of a configuration, whose VMs are told these addresses."""
        return cls(
            slug=entry.slug,
            type=entry.type,
            url=entry.url,
            guest_urls=guest_urls,
            chain_id=entry.chain_id or None,
            contract_address=entry.contract_address or None,
            gateway_app_id=entry.gateway_app_id or None,
        )

    @property
    def id(self) -> str:
        """Its public name."""
        return hashed("kms", self.slug)

    @property
    def is_onchain(self) -> bool:
        """Whether a contract decides which apps get keys."""
        return self.chain_id is not None


@dataclass(frozen=True)
class Catalog:
    """The offer of one host."""

    config: Config
    # What evidence of this host's guests says of the machine, where the service knows it; 64 digits or "".
    measured_device: str = ""

    @cached_property
    def node_name(self) -> str:
        """The name of the node."""
        return self.config.apps.node_name or self.config.node_name or socket.gethostname()

    @cached_property
    def device_id(self) -> str:
        """The device id of the node, 64 hex digits."""
        return self.config.apps.device_id or self.measured_device or self._kept_device()

    def _kept_device(self) -> str:
        drawn = secrets.token_hex(32) + "\n"
        return write_once(self.config.data_dir / "device-id", drawn).decode().strip()

    @cached_property
    def kms(self) -> tuple[Kms, ...]:
        """The KMS entries; the first is the default."""
        config = self.config
        entries = config.apps.kms or (KmsEntryConfig("main", "phala", config.kms_url),)
        usual = (
            config.cvm.kms_urls,
            *[()] * (len(entries) - 1),
        )  # the host's own is known to all VMs
        return tuple(
            Kms.of(entry, entry.guest_urls or urls or (entry.url,))
            for entry, urls in zip(entries, usual, strict=True)
        )

    def kms_named(self, name: str) -> Kms | None:
        """The entry with this slug or id, or None."""
        return next((each for each in self.kms if name in (each.slug, each.id)), None)

    def kms_of(self, slug: str | None, kms_urls: Sequence[str]) -> Kms:
        """The entry that a VM belongs to: as it was made with, else by its addresses, else the default."""
        if slug is not None and (found := self.kms_named(slug)):
            return found
        urls = set(kms_urls)
        met = (each for each in self.kms if urls & {each.url, *each.guest_urls})
        return next(met, self.kms[0])

    def chain(self, chain_id: int | None) -> ChainConfig | None:
        """How a chain is asked, or None when the configuration does not know it."""
        return next((c for c in self.config.apps.chains if c.chain_id == chain_id), None)

    def size_named(self, name: str) -> InstanceTypeConfig | None:
        """The instance type of that id, or None."""
        return next((each for each in self.config.apps.instance_types if each.id == name), None)

    def size_of(self, vcpu: int, memory_mb: int) -> str | None:
        """The id of the instance type with these resources, or None."""
        sizes = self.config.apps.instance_types
        return next((s.id for s in sizes if (s.vcpu, s.memory_mb) == (vcpu, memory_mb)), None)

    def images(self) -> list[Image]:
        """The images that can be booted."""
        return registry.list_images(self.config.image.path)

    def image_named(self, name: str) -> Image | None:
        """The image of that name, or None; a bare version names the newest image of it."""
        found = [each for each in self.images() if name in (each.name, each.version)]
        return next((each for each in found if each.name == name), found[-1] if found else None)

    def image(self, *, prefer_dev: bool) -> Image | None:
        """The image of a request that names none, or None when this host has none."""
        if not self.images():
            return None
        return self.image_named(registry.chosen(self.config.image, dev=prefer_dev))


def version_numbers(version: str) -> list[int]:
    """A version as the three or four numbers that clients want."""
    numbers = [int(each) for each in re.findall(r"\d+", version)[:4]]
    return numbers + [0] * (3 - len(numbers))
