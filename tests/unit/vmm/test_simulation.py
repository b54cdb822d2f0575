"""The simulated TEE's files on a host."""

from __future__ import annotations

import os
import time
from pathlib import Path

from attest.root import read_roots
from attest_sim.snp import SimulatedProcessor
from vmm import simulation


def test_the_first_vm_makes_seed_root_and_collateral(tmp_path: Path) -> None:
    folder = tmp_path / "tee"

    seed = simulation.seed(folder)

    assert len(seed) == 32
    assert (folder / "seed").read_bytes() == seed
    assert "BEGIN CERTIFICATE" in (folder / "tee-root-ca.pem").read_text()
    assert (folder / "seed").stat().st_mode & 0o077 == 0


def test_a_start_leaves_fresh_collateral_as_it_is(tmp_path: Path) -> None:
    first = simulation.seed(tmp_path)
    before = (tmp_path / "tee-collateral.json").stat().st_ino

    assert simulation.seed(tmp_path) == first
    assert (tmp_path / "tee-collateral.json").stat().st_ino == before


def test_a_start_renews_collateral_that_is_older_than_a_day(tmp_path: Path) -> None:
    first = simulation.seed(tmp_path)
    collateral = tmp_path / "tee-collateral.json"
    yesterday = time.time() - simulation.FRESH_S - 1
    os.utime(collateral, (yesterday, yesterday))

    assert simulation.seed(tmp_path) == first
    assert time.time() - collateral.stat().st_mtime < 60


def test_both_platforms_roots_are_there_before_any_vm(tmp_path: Path) -> None:
    simulation.prepare(tmp_path)
    roots = read_roots((tmp_path / "tee-root-ca.pem").read_bytes())
    assert roots.tdx is not None and roots.snp is not None

    told = simulation.of_guest(tmp_path, "dstack-amd-sev-snp")

    assert told["platform"] == "dstack-amd-sev-snp"
    assert SimulatedProcessor.from_text(told["processor"]).chain_der[2] == roots.snp
    assert simulation.of_guest(tmp_path, "dstack-amd-sev-snp") == told
    assert (tmp_path / "processor.pem").stat().st_mode & 0o077 == 0
    assert "processor" not in simulation.of_guest(tmp_path, "dstack-tdx")


def test_the_first_simulated_snp_vm_adds_its_root(tmp_path: Path) -> None:
    simulation.seed(tmp_path)

    simulation.of_guest(tmp_path, "dstack-amd-sev-snp")

    assert read_roots((tmp_path / "tee-root-ca.pem").read_bytes()).snp is not None
