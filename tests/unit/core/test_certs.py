"""Leaves and authorities, read back by cryptography."""

from __future__ import annotations

import datetime
import ipaddress

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID as Usage
from cryptography.x509.oid import NameOID

from core import certs
from core.certs import Issuer, Leaf
from core.errors import Invalid


@pytest.fixture
def ca() -> Issuer:
    key = ec.generate_private_key(ec.SECP256R1())
    text = certs.authority(key, certs.name("root"), path_length=1)
    return Issuer(key, x509.load_pem_x509_certificate(text.encode()))


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


def test_an_authority_below_another_points_at_it(ca: Issuer) -> None:
    key = ec.generate_private_key(ec.SECP256R1())

    text = certs.authority(key, certs.name("below", "An org"), path_length=0, issuer=ca)

    made = x509.load_pem_x509_certificate(text.encode())
    made.verify_directly_issued_by(ca.certificate)
    assert made.subject.rfc4514_string() == "CN=below,O=An org"
    above = made.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    own = ca.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    assert above.key_identifier == own.digest


def test_an_issuer_without_a_key_identifier_is_pointed_at_by_its_key(ca: Issuer) -> None:
    builder = (
        x509.CertificateBuilder()
        .subject_name(certs.name("plain"))
        .issuer_name(certs.name("plain"))
        .public_key(ca.key.public_key())
        .serial_number(1)
        .not_valid_before(certs.NOT_BEFORE)
        .not_valid_after(ca.certificate.not_valid_after_utc)
    )
    from cryptography.hazmat.primitives import hashes

    plain = Issuer(ca.key, builder.sign(ca.key, hashes.SHA256()))

    leaf = issued(plain, Leaf())

    above = leaf.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value
    assert above == x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.key.public_key())


def test_an_organization_that_does_not_fit_is_named(ca: Issuer) -> None:
    with pytest.raises(Invalid, match="org_name"):
        issued(ca, Leaf(organization="x" * 65))
