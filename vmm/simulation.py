"""The simulated TEE of a host without one: what its guests sign with, and root and collateral for verifiers.

Only reached where `[cvm] simulate` or a request's `simulated_tee` asks for it.
"""

from __future__ import annotations

import secrets
import time
from pathlib import Path

from core.files import write_atomic, write_once

SNP = "dstack-amd-sev-snp"
SEED = "seed"
PROCESSOR = "processor.pem"
ROOT_CA = "tee-root-ca.pem"
COLLATERAL = "tee-collateral.json"
# It is valid for a week; making it anew would cost every start of a VM 4 ms and more.
FRESH_S = 24 * 3600


def prepare(folder: Path) -> bytes:
    """Makes what is missing in `folder` and renews the collateral; returns the seed (32 bytes)."""
    secret = _seed(folder)
    _processor(folder, secret)
    _renew(folder, secret)
    return secret


def device_id(folder: Path) -> bytes:
    """What the evidence of its guests says of the machine (32 bytes)."""
    from attest import measure
    from attest_sim.tdx import SimulatedPlatform

    return measure.device_id(SimulatedPlatform.from_seed(seed(folder)).ppid)


def seed(folder: Path) -> bytes:
    """The seed (32 bytes), beside a root and collateral that are a day old at most."""
    secret = _seed(folder)
    if not _is_fresh(folder / COLLATERAL):
        _renew(folder, secret)
    return secret


def of_guest(folder: Path, platform: str) -> dict[str, str]:
    """What a guest is told of the TEE that it shall simulate."""
    if platform != SNP:
        return {"platform": platform, "seed": seed(folder).hex()}
    if not (folder / PROCESSOR).exists():
        prepare(folder)
    return {"platform": platform, "processor": (folder / PROCESSOR).read_text()}


def _seed(folder: Path) -> bytes:
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    return write_once(folder / SEED, secrets.token_bytes(32))


def _processor(folder: Path, secret: bytes) -> None:
    """Makes the SEV-SNP processor once."""
    from attest_sim.snp import SimulatedProcessor

    if not (folder / PROCESSOR).exists():
        write_once(folder / PROCESSOR, SimulatedProcessor.new(secret).to_text())


def _is_fresh(path: Path) -> bool:
    try:
        return time.time() - path.stat().st_mtime < FRESH_S
    except FileNotFoundError:
        return False


def _renew(folder: Path, secret: bytes) -> None:
    """Writes the roots, TDX's first and then SEV-SNP's if that was made, and TDX's collateral."""
    from attest_sim.snp import SimulatedProcessor
    from attest_sim.tdx import SimulatedPlatform

    platform = SimulatedPlatform.from_seed(secret)
    roots = platform.root_ca_pem
    if (folder / PROCESSOR).exists():
        roots += SimulatedProcessor.from_text((folder / PROCESSOR).read_text()).root_ca_pem
    write_atomic(folder / ROOT_CA, roots)
    write_atomic(folder / COLLATERAL, platform.collateral_json(int(time.time())))


def acpi_digests() -> tuple[bytes, ...]:
    """The digests of ACPI data (48 bytes each) that every simulated TDX VM has in its log."""
    from attest import lite
    from attest_sim.tdx import boot_events

    return lite.acpi_digests(boot_events())
