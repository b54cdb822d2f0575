"""The names that answers give to roots, so that nobody takes simulated evidence for real."""

from __future__ import annotations

from typing import Literal

from cryptography import x509

RootName = Literal["intel", "amd", "simulated", "custom"]


def custom_name(root: x509.Certificate) -> RootName:
    """What to call a root that is no vendor's; only a verifier's owner can have named it, so it is believed."""
    return "simulated" if "Simulated" in root.subject.rfc4514_string() else "custom"
