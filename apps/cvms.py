"""A VM as the apps interface knows it: its row, its profile, and what they mean on this host (pure)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from apps.catalog import Catalog, Kms
from apps.names import hashed
from attest import compose
from image.registry import Image
from models.port import PortLease

# Nothing else can be asked of a VM in these.
MOVING = {"starting": "running", "stopping": "stopped"}


@dataclass(frozen=True)
class Ref:
    """A project or a user, by id and name."""

    id: str
    name: str


@dataclass(frozen=True)
class Me:
    """The caller, and the project that the credential makes things in."""

    name: str
    email: str
    is_admin: bool
    role: str
    workspace: Ref


@dataclass(frozen=True)
class Cvm:
    """One VM.

    `row` has the columns of its row, `told` what the VM manager says of it now (vmm/description.py).
    """

    row: Any
    told: Mapping[str, Any]
    project: Ref
    creator: Ref | None
    catalog: Catalog
    image: Image | None
    ports: Sequence[PortLease]  # of the host, that lead to what the app publishes
    changed_ms: int

    @property
    def id(self) -> str:
        """Its public name."""
        return hashed("cvm", str(self.row.id))

    @property
    def number(self) -> int:
        """Its integer id."""
        return int(self.row.number)

    @property
    def uuid(self) -> str:
        """The VM's id."""
        return str(self.row.id)

    @property
    def status(self) -> str:
        """The status word."""
        return status_word(self.told["status"])

    @property
    def target(self) -> str | None:
        """The status that a move under way leads to."""
        return MOVING.get(self.status)

    @property
    def kms(self) -> Kms:
        """The KMS entry it belongs to."""
        return self.catalog.kms_of(self.row.kms, self.row.options.get("kms_urls") or [])

    @property
    def instance_type(self) -> str | None:
        """The name of its size."""
        kept: str | None = self.row.instance_type
        return kept or self.catalog.size_of(self.row.vcpu, self.row.memory_mb)

    @cached_property
    def compose(self) -> Mapping[str, Any]:
        """The app-compose document; empty when its text is none."""
        return compose.document_of(self.row.compose_file)

    @property
    def compose_hash(self) -> str:
        """The hash of the exact text, in hex."""
        return compose.compose_hash(self.row.compose_file.encode()).hex()

    @property
    def manifest_version(self) -> int | None:
        """Which kind of document it is, where that is a number as it should be."""
        value = self.compose.get("manifest_version")
        return value if isinstance(value, int) and not isinstance(value, bool) else None

    def text(self, field: str) -> str | None:
        """A text of the document, or None."""
        value = self.compose.get(field)
        return value if isinstance(value, str) else None

    def flag(self, field: str, absent: bool) -> bool:
        """A flag of the document."""
        value = self.compose.get(field)
        return value if isinstance(value, bool) else absent

    @property
    def features(self) -> list[str]:
        """The old names of what the app uses."""
        wanted = {"kms": self.flag("kms_enabled", False), "tproxy-net": self.has_gateway}
        return [name for name, is_on in wanted.items() if is_on]

    @property
    def has_gateway(self) -> bool:
        """Whether the app asks to be published by a gateway."""
        return bool(self.row.options.get("gateway"))

    @property
    def gpus(self) -> int:
        """How many GPUs it was given."""
        return len((self.row.options.get("gpus") or {}).get("gpus") or [])


def status_word(vmm_word: str) -> str:
    """The VM manager's status as clients know it; a VM that cannot be read is in error."""
    return "error" if vmm_word == "unknown" else vmm_word
