"""Real vectors from beside the checkout, and one simulated platform's evidence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from attest import eventlog
from attest.eventlog import Event, runtime_event
from attest_sim.tdx import SIMULATED_MRTD, SimulatedPlatform, boot_events

VECTORS = Path(__file__).parents[4] / "shared" / "data" / "attestation"
NOW = 1_800_000_000

# A loaded machine is no fault of the code under test.
settings.register_profile("attest", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("attest")


@pytest.fixture(scope="session")
def vector() -> Callable[[str], bytes]:
    """Reads a real vector; skips without the folder, fails when the folder lacks the file."""

    def read(name: str) -> bytes:
        if not VECTORS.is_dir():
            pytest.skip("the folder of real vectors is not beside this checkout")
        return (VECTORS / name).read_bytes()

    return read


@dataclass(frozen=True)
class Evidence:
    """A quote with all that belongs to it."""

    platform: SimulatedPlatform
    quote: bytes
    events: tuple[Event, ...]
    report_data: bytes
    collateral: str
    now: int = NOW


@pytest.fixture(scope="session")
def simulated() -> Evidence:
    """What a simulated guest that measured three runtime events shows."""
    platform = SimulatedPlatform.from_seed(b"unit tests of the attest library")
    runtime = (("app-id", b"\x11" * 20), ("key-provider", b"{}"), ("system-ready", b""))
    events = (*boot_events(), *(runtime_event(name, payload) for name, payload in runtime))
    report_data = bytes(range(64))
    rtmrs = [eventlog.replay(events, imr) for imr in range(4)]
    quote = platform.quote(report_data, mrtd=SIMULATED_MRTD, rtmrs=rtmrs)
    return Evidence(platform, quote, events, report_data, platform.collateral_json(NOW))
