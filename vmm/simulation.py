"""The simulated TEE of a host without one: a seed for its guests, root and collateral for verifiers.

Only reached where `[cvm] simulate` or a request's `simulated_tee` asks for it.
"""

from __future__ import annotations

import os
import secrets
import time
from pathlib import Path

from core.files import write_atomic

SEED = "seed"
ROOT_CA = "tee-root-ca.pem"
COLLATERAL = "tee-collateral.json"


def prepare(folder: Path) -> bytes:
    """Makes what is missing in `folder` and renews the collateral; returns the seed (32 bytes)."""
    from attest_sim.tdx import SimulatedPlatform

    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    seed = _seed(folder / SEED)
    platform = SimulatedPlatform.from_seed(seed)
    write_atomic(folder / ROOT_CA, platform.root_ca_pem)
    write_atomic(folder / COLLATERAL, platform.collateral_json(int(time.time())))
    return seed


def _seed(path: Path) -> bytes:
    try:
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return path.read_bytes()
    with os.fdopen(fd, "wb") as file:
        file.write(secrets.token_bytes(32))
        file.flush()
        os.fsync(file.fileno())
    return path.read_bytes()
