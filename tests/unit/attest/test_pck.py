from __future__ import annotations

import base64
import datetime
from collections.abc import Callable
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding
from hypothesis import given
from hypothesis import strategies as st

from attest import der, pck, quote
from attest.errors import Malformed

Read = Callable[[str], bytes]
KEY = ec.generate_private_key(ec.SECP256R1())
NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])


def certificate(extension: bytes | None) -> x509.Certificate:
    """A certificate whose SGX extension has these bytes."""
    builder = (
        x509.CertificateBuilder()
        .subject_name(NAME)
        .issuer_name(NAME)
        .public_key(KEY.public_key())
        .serial_number(1)
        .not_valid_before(datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC))
        .not_valid_after(datetime.datetime(2034, 1, 1, tzinfo=datetime.UTC))
    )
    if extension is not None:
        value = x509.UnrecognizedExtension(pck.SGX_EXTENSIONS, extension)
        builder = builder.add_extension(value, critical=False)
    return builder.sign(KEY, hashes.SHA256())


def field(arc: int, octets: bytes) -> bytes:
    return der.element(
        der.SEQUENCE,
        der.oid(f"1.2.840.113741.1.13.1.{arc}"),
        der.element(der.OCTET_STRING, octets),
    )


def test_the_leaf_of_a_simulated_quote_names_its_platform(simulated: Any) -> None:
    chain = pck.certificates(quote.parse(simulated.quote).pck_chain_pem)

    assert len(chain) == 3
    assert pck.platform(chain[0]) == pck.Platform(simulated.platform.ppid, bytes(2), b"SIMULA")


def test_the_leaf_of_a_real_quote_names_what_dcap_qvl_reads(vector: Read) -> None:
    import dcap_qvl

    pem = quote.parse(vector("tdx-b0c06f.quote.bin")).pck_chain_pem
    named = pck.platform(pck.certificates(pem)[0])
    theirs = dcap_qvl.parse_pck_extension_from_pem(pem)

    assert named.fmspc.hex() == "b0c06f000000"
    assert (named.ppid, named.pce_id) == (bytes(theirs.ppid), bytes(theirs.pce_id))


@pytest.mark.parametrize("chain", [b"", b"\0", b"-----BEGIN CERTIFICATE-----\nAA", b"\xff" * 40])
def test_a_chain_that_cannot_be_read_is_refused(chain: bytes) -> None:
    with pytest.raises(Malformed, match="chain cannot be read"):
        pck.certificates(chain)


@pytest.mark.parametrize(
    "extension",
    [
        None,
        b"",
        b"\x30\x03\x02\x01\x00",  # not a list of pairs
        der.element(der.SEQUENCE, der.element(der.SEQUENCE, der.integer(1))),
        der.element(der.SEQUENCE, der.element(der.SEQUENCE, der.integer(1), der.integer(2))),
        der.element(der.SEQUENCE),  # no fields
        der.element(der.SEQUENCE, field(1, bytes(15)), field(3, bytes(2)), field(4, bytes(6))),
        der.element(der.SEQUENCE, field(1, bytes(16)), field(3, bytes(2))),
    ],
)
def test_a_leaf_that_names_no_platform_is_refused(extension: bytes | None) -> None:
    with pytest.raises(Malformed):
        pck.platform(certificate(extension))


def test_a_certificate_of_an_unknown_version_is_refused() -> None:
    encoded = certificate(None).public_bytes(Encoding.DER)
    version = bytes.fromhex("a003020102")
    newer = base64.encodebytes(encoded.replace(version, version[:-1] + b"\x07", 1))
    pem = b"-----BEGIN CERTIFICATE-----\n" + newer + b"-----END CERTIFICATE-----\n"

    with pytest.raises(Malformed, match="chain cannot be read"):
        pck.certificates(pem)


@given(st.binary(max_size=80))
def test_any_extension_is_read_or_refused_as_malformed(extension: bytes) -> None:
    with pytest.raises(Malformed):
        pck.platform(certificate(extension))


def test_a_chain_longer_than_any_real_one_is_not_read_in() -> None:
    with pytest.raises(Malformed, match="larger than 64 KiB"):
        pck.certificates(b" " * (64 * 1024 + 1))
