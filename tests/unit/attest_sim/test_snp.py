from __future__ import annotations

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

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


def test_a_processor_is_passed_on_as_text() -> None:
    first = processor()
    again = SimulatedProcessor.from_text(first.to_text())

    assert (again.chip_id, again.chain_der) == (first.chip_id, first.chain_der)
    report = again.report(bytes(64), measurement=bytes(48))
    assert report == first.report(bytes(64), measurement=bytes(48))


def test_a_text_that_is_no_processor_is_refused() -> None:
    whole = processor().to_text()
    key = whole.index("-----BEGIN PRIVATE")
    second = whole.index("-----BEGIN CERT", 1)

    for text in ("", "nothing", whole[:key], whole[second:], whole.replace("BEGIN", "", 1)):
        with pytest.raises(Invalid, match="no simulated processor"):
            SimulatedProcessor.from_text(text)


def test_a_processor_with_a_key_of_another_curve_is_refused() -> None:
    other = ec.generate_private_key(ec.SECP256R1()).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )

    with pytest.raises(Invalid, match="P-384"):
        SimulatedProcessor.from_text(processor().chain_pem + other.decode())
