"""The app's certificates, read back by cryptography and checked by openssl."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.oid import NameOID

from attest import eventlog, quote, ratls
from core.certs import Issuer, Leaf, spki_der
from core.errors import Invalid
from core.kdf import pkcs8_pem
from core.proc import run
from guest import certs
from guest.keys import KeyProvider
from guest.service import Agent


@pytest.fixture
def ca() -> Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    provider = KeyProvider("None", pkcs8_pem(key))
    return certs.issuer_of(provider, certs.root(key))


def issued(ca: Issuer, leaf: Leaf) -> x509.Certificate:
    key = ec.generate_private_key(ec.SECP256R1())
    return x509.load_pem_x509_certificate(ca.issue(key.public_key(), leaf).encode())


def test_a_leaf_says_what_was_asked(ca: Issuer) -> None:
    leaf = issued(
        ca,
        Leaf(
            "example.com", ["www.example.com", "10.0.0.1", "::1"], True, True, 1000, 2_000_000_000
        ),
    )

    assert leaf.subject.get_attributes_for_oid(NameOID.COMMON_NAME)[0].value == "example.com"
    names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["www.example.com"]
    assert names.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address("10.0.0.1"),
        ipaddress.ip_address("::1"),
    ]
    usages = leaf.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    assert list(usages) == [Usage.SERVER_AUTH, Usage.CLIENT_AUTH]
    assert leaf.not_valid_before_utc.timestamp() == 1000
    assert leaf.not_valid_after_utc.timestamp() == 2_000_000_000


def test_a_leaf_of_nothing_is_legal_and_valid_for_ten_years(ca: Issuer) -> None:
    leaf = issued(ca, Leaf())

    assert leaf.subject == x509.Name([])
    assert leaf.not_valid_before_utc == datetime.datetime(1975, 1, 1, tzinfo=datetime.UTC)
    left = leaf.not_valid_after_utc - datetime.datetime.now(datetime.UTC)
    assert datetime.timedelta(days=3649) < left <= datetime.timedelta(days=3650)
    for absent in (x509.ExtendedKeyUsage, x509.SubjectAlternativeName):
        with pytest.raises(x509.ExtensionNotFound):
            leaf.extensions.get_extension_for_class(absent)


@pytest.mark.parametrize(
    "leaf",
    [
        Leaf(not_before=5, not_after=5),
        Leaf(not_after=1),
        Leaf(not_after=2**64 - 1),
        Leaf(subject="x" * 65),
        Leaf(alt_names=[""]),
        Leaf(alt_names=["bücher.example"]),
    ],
)
def test_what_cannot_stand_in_a_certificate_is_refused(ca: Issuer, leaf: Leaf) -> None:
    with pytest.raises(Invalid):
        issued(ca, leaf)


def test_openssl_accepts_the_chain_in_strict_mode(ca: Issuer, tmp_path: Path, agent: Agent) -> None:
    made = agent.get_tls_key("example.com", ["example.com"], True, True, False, None, None, True)
    leaf, root = made["certificate_chain"]  # type: ignore[misc] # a mapping of what the message holds
    (tmp_path / "leaf.pem").write_text(leaf)
    (tmp_path / "root.pem").write_text(root)

    command = ["openssl", "verify", "-x509_strict", "-CAfile", tmp_path / "root.pem"]
    done = run([*command, "-purpose", "sslserver", tmp_path / "leaf.pem"])

    assert done.stdout.strip().endswith(b": OK")


def test_an_ra_tls_leaf_attests_its_own_key(agent: Agent) -> None:
    made = agent.get_tls_key("", [], True, False, False, None, None, True)
    certificate = x509.load_pem_x509_certificate(made["certificate_chain"][0].encode())  # type: ignore[index] # as above

    found = ratls.read(certificate)

    public = certificate.public_key()
    assert isinstance(public, ec.EllipticCurvePublicKey)
    bound = ratls.report_data_for_key(spki_der(public))
    evidence = found.evidence()
    assert evidence is not None and evidence.report_data == bound
    report = quote.parse(evidence.platform.quote).report  # type: ignore[union-attr] # a TDX simulator
    assert report.report_data == bound
    assert report.rtmrs[3] == eventlog.replay(evidence.runtime_events, 3)
    assert all(event.digest == b"" for event in evidence.event_log if event.imr == 3)
    assert found.usage == "app:custom"
    assert found.app_info is not None
    assert found.app_info.app_id == agent.vm().instance.app_id
    assert found.app_info.compose_hash == agent.vm().app.compose_hash
    assert found.app_info.init_script_hashes is None


def test_a_plain_leaf_carries_no_evidence(agent: Agent) -> None:
    made = agent.get_tls_key("", [], False, False, False, None, None, False)
    certificate = x509.load_pem_x509_certificate(made["certificate_chain"][0].encode())  # type: ignore[index] # as above

    found = ratls.read(certificate)

    assert (found.attestation, found.app_info, found.usage) == (None, None, "app:custom")


def test_every_call_makes_a_new_key(agent: Agent) -> None:
    made = {
        agent.get_tls_key("", [], False, False, False, None, None, False)["key"] for _ in range(5)
    }

    assert len(made) == 5


def test_the_legacy_key_of_a_path_is_always_the_same(agent: Agent) -> None:
    def key(path: str, *, random_seed: bool = False) -> object:
        return agent.derive_key(path, "", [], False, False, False, random_seed)["key"]

    assert key("/") == key("/") != key("")
    assert key("/", random_seed=True) != key("/", random_seed=True)
