from __future__ import annotations

import datetime

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import padding, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from attest import snp, snp_crl
from attest.errors import BadSignature, Malformed, NotGenuine, Revoked, Stale
from tests.common.evidence import NOW, processor
from tests.common.evidence import revocations as made


def chain() -> snp.Chain:
    """The simulated processor's, under its own root."""
    root = processor().ark.public_bytes(Encoding.DER)
    return snp.chain_of([processor().ark, processor().ask, processor().vcek], root)


def test_a_list_of_the_root_that_names_nobody_is_fine() -> None:
    for raw in (made(), x509.load_der_x509_crl(made()).public_bytes(Encoding.PEM)):
        crl = snp_crl.read(raw)

        snp_crl.check_signature(crl, chain(), NOW)
        snp_crl.check_not_listed(crl, chain())


def test_a_revoked_ask_is_found() -> None:
    crl = snp_crl.read(made(processor().ask.serial_number))

    snp_crl.check_signature(crl, chain(), NOW)
    with pytest.raises(Revoked, match="ASK"):
        snp_crl.check_not_listed(crl, chain())


def test_a_list_of_another_time_says_nothing() -> None:
    crl = snp_crl.read(made())

    for moment in (NOW - 10 * 86400, NOW + 400 * 86400):
        with pytest.raises(Stale):
            snp_crl.check_signature(crl, chain(), moment)


def test_a_list_that_somebody_else_signed_is_refused() -> None:
    other = rsa.generate_private_key(65537, 2048)

    with pytest.raises(BadSignature):
        snp_crl.check_signature(snp_crl.read(made(key=other)), chain(), NOW)
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "another")])
    with pytest.raises(NotGenuine, match="another authority"):
        snp_crl.check_signature(snp_crl.read(made(issuer=name)), chain(), NOW)


def test_a_list_signed_in_the_older_way_is_refused() -> None:
    start = datetime.datetime.fromtimestamp(NOW, datetime.UTC)
    builder = x509.CertificateRevocationListBuilder().issuer_name(processor().ark.subject)
    builder = builder.last_update(start).next_update(start + datetime.timedelta(1))
    key = rsa.generate_private_key(65537, 2048)
    crl = builder.sign(key, hashes.SHA384(), rsa_padding=padding.PKCS1v15())

    with pytest.raises(BadSignature):
        snp_crl.check_signature(crl, chain(), NOW)


@pytest.mark.parametrize("raw", [b"", b"\x30\x00", b"-----BEGIN X509 CRL-----\nAA==\n"])
def test_what_is_no_list_is_refused(raw: bytes) -> None:
    with pytest.raises(Malformed):
        snp_crl.read(raw)
