"""The simulated TEE of a host without one: a seed for its guests, root and collateral for verifiers.

Only reached where `[cvm] simulate` or a request's `simulated_tee` asks for it.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from core.files import write_atomic, write_once

SEED = "seed"
ROOT_CA = "tee-root-ca.pem"
COLLATERAL = "tee-collateral.json"
# It is valid for a week; making it anew would cost every start of a VM 4 ms and more.
FRESH_S = 24 * 3600


def prepare(folder: Path) -> bytes:
    """Makes what is missing in `folder` and renews the collateral; returns the seed (32 bytes)."""
    from attest_sim.tdx import SimulatedPlatform

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    seed = write_once(folder / SEED, secrets.token_bytes(32))
    platform = SimulatedPlatform.from_seed(seed)
    write_atomic(folder / ROOT_CA, platform.root_ca_pem)
    write_atomic(folder / COLLATERAL, platform.collateral_json(int(time.time())))
    return seed


def seed(folder: Path) -> bytes:
    """The seed (32 bytes), beside a root and collateral that are a day old at most."""
    try:
        if time.time() - (folder / COLLATERAL).stat().st_mtime < FRESH_S:
            return (folder / SEED).read_bytes()
    except FileNotFoundError:
        pass
    return prepare(folder)
