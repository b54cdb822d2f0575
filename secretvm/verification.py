"""The verification calls of this surface, as one thing that the application makes."""

from __future__ import annotations

import ipaddress
import time
from dataclasses import dataclass
from urllib.parse import urlsplit

from core.config import Config
from core.outbound import Outbound, Reach
from secretvm.builds import Builds
from secretvm.gateway import Gateways
from secretvm.live import Live
from secretvm.quotes import Quotes
from verify.service import Verifier


@dataclass(frozen=True)
class Verification:
    """Answers about builds, about quotes, and about hosts that are asked right now."""

    builds: Builds
    quotes: Quotes
    live: Live
    gateways: Gateways

    @classmethod
    def of(cls, config: Config, verifier: Verifier, acpi: tuple[bytes, ...] = ()) -> Verification:
        """The verification of a service; `acpi` are the digests that its simulated VMs measure."""
        builds = Builds.of(config, acpi)
        quotes = Quotes(verifier, config.attestation.known_machines)
        outbound = Outbound(reach(config))
        return cls(builds, quotes, Live(outbound, quotes, builds), Gateways(outbound, quotes))

    @staticmethod
    def now() -> int:
        """The Unix time that evidence is judged by."""
        return int(time.time())


def reach(config: Config) -> Reach:
    """Where strangers may send this host: what the operator says, else anywhere if only this host can call."""
    said = config.attestation.outbound
    if said:
        return Reach(said)
    host = urlsplit(config.address.replace("tcp:", "tcp://", 1)).hostname or ""
    try:
        is_local = ipaddress.ip_address(host).is_loopback
    except ValueError:
        is_local = host == "localhost"
    return Reach.ANY if is_local else Reach.PUBLIC
