"""What deciding who may have keys is about: the questions, the answer, and what a way of deciding says of itself."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from attest.boot_info import BootInfo


@dataclass(frozen=True)
class Decision:
    """Yes or no, the reason of a no, and the gateway that an allowed app may use."""

    is_allowed: bool
    reason: str = ""
    gateway_app_id: str = ""


@dataclass(frozen=True)
class Policy:
    """What an authorisation service says of itself."""

    gateway_app_id: str = ""
    kms_contract: str = ""
    chain_id: int = 0
    app_implementation: str = ""
    eth_rpc_url: str = ""


class Authorizer(Protocol):
    """Decides for apps and for other KMSs."""

    is_dev: bool

    def app(self, boot: BootInfo) -> Decision:
        """Whether an app may have its keys."""
        ...

    def kms(self, boot: BootInfo) -> Decision:
        """Whether a KMS, this one or another, may hold the root keys."""
        ...

    def policy(self) -> Policy:
        """What the service says of itself; Upstream when it cannot be asked."""
        ...
