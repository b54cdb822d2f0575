from __future__ import annotations

import pytest

from attest import snp
from attest_sim.snp import SimulatedProcessor
from core.errors import Invalid
from tests.common.evidence import processor

SEED = b"a simulated processor for tests."


def test_a_seed_stands_for_the_same_keys_everywhere() -> None:
    again = SimulatedProcessor.from_seed(SEED)

    for one, other in zip(processor().chain_der, again.chain_der, strict=True):
        [first], [second] = snp.certificates([one]), snp.certificates([other])
        assert first.public_key() == second.public_key()
    assert again.chip_id == processor().chip_id
    # A report under the first chain is genuine under the second.
    raw = processor().report(bytes(64), measurement=bytes(48))
    assert raw == again.report(bytes(64), measurement=bytes(48))


def test_every_name_says_that_it_is_simulated() -> None:
    for cert in snp.certificates(processor().chain_der):
        assert "Simulated" in cert.subject.rfc4514_string()


def test_sizes_that_no_report_has_are_refused() -> None:
    with pytest.raises(Invalid, match="32 bytes"):
        SimulatedProcessor.from_seed(b"short")
    with pytest.raises(Invalid, match="64 bytes of report data"):
        processor().report(b"", measurement=bytes(48))
