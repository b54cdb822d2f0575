"""Names that the service gives to VMs."""

from __future__ import annotations

import secrets
from collections.abc import Container

from rest.names import pair


def draw(taken: Container[str]) -> str:
    """A name that is not taken; with a number behind it where two words alone do not do."""
    while True:
        plain = pair()
        for name in (plain, f"{plain}-{secrets.randbelow(9000) + 1000}"):
            if name not in taken:
                return name
