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


def prepare(folder: Path) -> bytes:
    """Makes what is missing in `folder` and renews the collateral; returns the seed (32 bytes)."""
    from attest_sim.tdx import SimulatedPlatform

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    seed = write_once(folder / SEED, secrets.token_bytes(32))
    platform = SimulatedPlatform.from_seed(seed)
    write_atomic(folder / ROOT_CA, platform.root_ca_pem)
    write_atomic(folder / COLLATERAL, platform.collateral_json(int(time.time())))
    return seed
