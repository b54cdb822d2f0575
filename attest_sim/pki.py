"""Keys and certificates of the simulated TEE, all made from one 32-byte seed.

ECDSA is deterministic (RFC 6979) throughout and validity is fixed, so that a host and its guests, each
from the same seed, arrive at the same certificates byte for byte.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, utils
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import NameOID

from attest import der
from core import certs

ORGANIZATION = "Casemate Simulated TEE"
NOT_BEFORE = datetime.datetime(2024, 1, 1, tzinfo=datetime.UTC)
# The last second that X.509 writes as UTCTime.
NOT_AFTER = datetime.datetime(2049, 12, 31, 23, 59, 59, tzinfo=datetime.UTC)

_SALT = b"casemate-simulated-tee"
# SEC 2: the order of P-256's base point.
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551
# RFC 5758 section 3.2: ecdsa-with-SHA256.
_ECDSA_SHA256 = der.element(der.SEQUENCE, der.oid("1.2.840.10045.4.3.2"))


def derive(seed: bytes, label: str, length: int) -> bytes:
    """`length` bytes made from the seed for one purpose (HKDF-SHA256)."""
    return HKDF(hashes.SHA256(), length, _SALT, label.encode()).derive(seed)


def derive_key(seed: bytes, label: str) -> ec.EllipticCurvePrivateKey:
    """A P-256 key made from the seed for one purpose."""
    # 16 bytes more than the order has, so that the remainder is unbiased.
    scalar = int.from_bytes(derive(seed, label, 48), "big") % (_P256_ORDER - 1) + 1
    return ec.derive_private_key(scalar, ec.SECP256R1())


def sign(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """An ASN.1 ECDSA signature with SHA-256, the same for the same message."""
    return key.sign(message, ec.ECDSA(hashes.SHA256(), deterministic_signing=True))


def sign_raw(key: ec.EllipticCurvePrivateKey, message: bytes) -> bytes:
    """The same signature as r || s, 64 bytes, as quotes and collateral carry it."""
    r, s = utils.decode_dss_signature(sign(key, message))
    return r.to_bytes(32, "big") + s.to_bytes(32, "big")


def public_point(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The public key as x || y, 64 bytes."""
    encoding = serialization.Encoding.X962, serialization.PublicFormat.UncompressedPoint
    return key.public_key().public_bytes(*encoding)[1:]


@dataclass(frozen=True)
class Authority:
    """A key with its certificate: what signs other certificates, revocation lists and documents."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @property
    def pem(self) -> str:
        """The certificate in PEM."""
        return self.certificate.public_bytes(serialization.Encoding.PEM).decode()

    @property
    def der(self) -> bytes:
        """The certificate in DER."""
        return self.certificate.public_bytes(serialization.Encoding.DER)

    def revocation_list(
        self, issued: datetime.datetime, until: datetime.datetime, revoked: Sequence[int] = ()
    ) -> bytes:
        """A DER revocation list of these serial numbers, valid between the two times."""
        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(issued)
            .next_update(until)
            .add_extension(x509.CRLNumber(int(issued.timestamp())), critical=False)
            .add_extension(_authority_key(self.key), critical=False)
        )
        for serial in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(issued)
            builder = builder.add_revoked_certificate(entry.build())
        crl = builder.sign(self.key, hashes.SHA256())
        return crl.public_bytes(serialization.Encoding.DER)


def authority(
    seed: bytes,
    name: str,
    issuer: Authority | None = None,
    *,
    is_ca: bool,
    extension: x509.UnrecognizedExtension | None = None,
) -> Authority:
    """The authority called `name` under an issuer (None: it signs itself), made from the seed."""
    key = derive_key(seed, f"key {name}")
    signer = issuer.key if issuer else key
    subject = _name(name)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer.certificate.subject if issuer else subject)
        .public_key(key.public_key())
        .serial_number(int.from_bytes(derive(seed, f"serial {name}", 16), "big") >> 1 | 1)
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(NOT_AFTER)
        .add_extension(x509.BasicConstraints(ca=is_ca, path_length=None), critical=True)
        .add_extension(certs.key_usage(is_ca=is_ca, signs=not is_ca), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .add_extension(_authority_key(signer), critical=False)
    )
    if extension:
        builder = builder.add_extension(extension, critical=False)
    return Authority(key, _signed_again(builder.sign(signer, hashes.SHA256()), signer))


def _signed_again(
    certificate: x509.Certificate, signer: ec.EllipticCurvePrivateKey
) -> x509.Certificate:
    # Debian 13's cryptography 43 cannot ask for a deterministic signature while building.
    body = certificate.tbs_certificate_bytes
    signature = der.element(der.BIT_STRING, b"\0", sign(signer, body))
    return x509.load_der_x509_certificate(der.element(der.SEQUENCE, body, _ECDSA_SHA256, signature))


def _name(name: str) -> x509.Name:
    return x509.Name(
        [
            x509.NameAttribute(NameOID.COMMON_NAME, name),
            x509.NameAttribute(NameOID.ORGANIZATION_NAME, ORGANIZATION),
        ]
    )


def _authority_key(signer: ec.EllipticCurvePrivateKey) -> x509.AuthorityKeyIdentifier:
    return x509.AuthorityKeyIdentifier.from_issuer_public_key(signer.public_key())
