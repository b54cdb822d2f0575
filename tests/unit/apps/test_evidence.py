"""What a guest's evidence says of its app, in words: nothing is proven that a vendor's root does not stand for."""

from __future__ import annotations

import datetime
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from apps import evidence as told
from apps.attestations import Said
from apps.evidence import Words
from attest import ratls, verified
from attest.collateral import given
from tests.common import evidence
from tests.common.evidence import APP_ID, COMPOSE_HASH, NOW, TdxVm, platform
from verify.service import Verifier

KEY = ec.generate_private_key(ec.SECP256R1())
SPKI = KEY.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def certificate(*extensions: x509.UnrecognizedExtension) -> str:
    """A certificate of KEY by itself."""
    name = x509.Name([])
    moment = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    builder = x509.CertificateBuilder(name, name, KEY.public_key(), 1, moment, moment)
    for each in extensions:
        builder = builder.add_extension(each, critical=False)
    return builder.sign(KEY, hashes.SHA256()).public_bytes(Encoding.PEM).decode()


def attested(data: bytes = ratls.report_data_for_key(SPKI)) -> str:
    """One with evidence of a simulated VM over some report data."""
    return certificate(ratls.attestation_extension(TdxVm(report_data=data).attestation()))


def words(tmp_path: Path, pem: str, *, trusts: bool = True, **changes: str) -> Words:
    """What is said of a VM that shows a certificate."""
    root = tmp_path / "root.pem"
    root.write_text(platform().root_ca_pem)
    verifier = Verifier(root if trusts else Path(), given(evidence.collateral()))
    row = SimpleNamespace(app_id=changes.get("app_id", APP_ID.hex()))
    text = changes.get("compose_hash", COMPOSE_HASH.hex())
    cvm: Any = SimpleNamespace(row=row, told={"simulated_tee": None}, compose_hash=text)
    return told.words(cvm, Said(pem=pem), verifier, NOW)


@pytest.fixture
def as_intels(monkeypatch: pytest.MonkeyPatch) -> None:
    """The simulated root counts as Intel's."""
    real = verified.verify_evidence
    monkeypatch.setattr(told, "verify_evidence", lambda *args: replace(real(*args), root="intel"))


def has(sentences: tuple[str, ...], text: str) -> bool:
    return any(text in each for each in sentences)


@pytest.mark.usefixtures("as_intels")
def test_a_vendors_evidence_proves_processor_key_image_and_app(tmp_path: Path) -> None:
    found = words(tmp_path, attested())

    assert found.is_proven, found.lacks
    for text in ("an Intel processor", "key of its certificate", "newest revision"):
        assert has(found.proves, text)


def test_a_root_of_the_operators_proves_nothing(tmp_path: Path) -> None:
    found = words(tmp_path, attested())

    assert found.proves == ()
    assert has(found.lacks, "leads to a root of this host's operator")


def test_evidence_of_an_unknown_root_is_not_accepted(tmp_path: Path) -> None:
    found = words(tmp_path, attested(), trusts=False)

    assert found.proves == ()
    assert has(found.lacks, "does not accept its evidence: quote: its certificate chain")
    assert has(found.lacks, "Which app it booted")


@pytest.mark.usefixtures("as_intels")
def test_another_text_or_app_than_the_host_says_is_told(tmp_path: Path) -> None:
    found = words(tmp_path, attested(), app_id="00" * 20)
    assert has(found.lacks, f"It booted as another app, {APP_ID.hex()}")

    found = words(tmp_path, attested(), compose_hash="00" * 32)
    assert has(found.lacks, f"It booted another app-compose text, {COMPOSE_HASH.hex()}")


@pytest.mark.parametrize(
    ("pem", "why"),
    [
        ("", "it has no certificate"),
        ("no certificate", "its certificate cannot be read"),
        (certificate(), "its certificate has none"),
        (certificate(x509.UnrecognizedExtension(ratls.ATTESTATION, b"\x04\x01x")), "It shows no evidence"),
        (attested(bytes(64)), "what its certificate carries is of another key"),
    ],
    ids=["none", "nonsense", "plain", "broken", "another key"],
)  # fmt: skip
def test_what_a_guest_does_not_show_is_not_proven(tmp_path: Path, pem: str, why: str) -> None:
    found = words(tmp_path, pem)

    assert found.proves == ()
    assert has(found.lacks, why)
