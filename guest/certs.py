"""The app's certificates: its self-signed root and the RA-TLS leaves of GetTlsKey.

Source: guest-agent.md section 4, kms.md section 1.
"""

from __future__ import annotations

import datetime
import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from core.errors import Invalid, Unavailable
from guest.keys import KeyProvider

LIFETIME = datetime.timedelta(days=3650)
# guest-agent.md section 4: well in the past, so that no clock is too slow for the certificate.
NOT_BEFORE = datetime.datetime(1975, 1, 1, tzinfo=datetime.UTC)
ROOT_NAME = "App Root Cert"
MAX_COMMON_NAME = 64


@dataclass(frozen=True)
class Leaf:
    """What a leaf is to say; times in Unix seconds, None for the defaults."""

    subject: str = ""
    alt_names: Sequence[str] = ()
    server_auth: bool = False
    client_auth: bool = False
    not_before: int | None = None
    not_after: int | None = None
    extensions: Sequence[x509.UnrecognizedExtension] = ()


@dataclass(frozen=True)
class Issuer:
    """The app's CA: its key and certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    @classmethod
    def of(cls, provider: KeyProvider, ca_cert: str) -> Issuer:
        """The CA that a guest without a KMS signs with itself; Unavailable when a KMS would have to."""
        if provider.kind == "Kms":
            raise Unavailable(
                "certificates of this app come from its KMS, which cannot be asked yet"
            )
        key = serialization.load_pem_private_key(provider.key_pem.encode(), None)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise Invalid("the key provider's key is not an elliptic curve key")
        return cls(key, x509.load_pem_x509_certificate(ca_cert.encode()))

    def issue(self, public_key: ec.EllipticCurvePublicKey, leaf: Leaf) -> str:
        """The leaf in PEM; Invalid names the field that cannot stand in a certificate."""
        not_before, not_after = _validity(leaf)
        builder = (
            x509.CertificateBuilder()
            .subject_name(_subject(leaf.subject))
            .issuer_name(self.certificate.subject)
            .public_key(public_key)
            .serial_number(x509.random_serial_number())
            .not_valid_before(not_before)
            .not_valid_after(not_after)
            .add_extension(_key_usage(is_ca=False), critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
            .add_extension(self._authority(), critical=False)
        )
        if leaf.alt_names:
            # RFC 5280 4.2.1.6: critical when it is the only name.
            builder = builder.add_extension(_alt_names(leaf.alt_names), critical=not leaf.subject)
        usages = _usages(leaf)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        for extension in leaf.extensions:
            builder = builder.add_extension(extension, critical=False)
        return _pem(builder.sign(self.key, hashes.SHA256()))

    def _authority(self) -> x509.AuthorityKeyIdentifier:
        try:
            found = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found.value)


def root(
    key: ec.EllipticCurvePrivateKey, extensions: Sequence[x509.UnrecognizedExtension] = ()
) -> str:
    """The self-signed root of an app without a KMS, in PEM."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, ROOT_NAME)])
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(NOT_BEFORE)
        .not_valid_after(datetime.datetime.now(datetime.UTC) + LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(is_ca=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    )
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return _pem(builder.sign(key, hashes.SHA256()))


def spki_der(key: ec.EllipticCurvePublicKey) -> bytes:
    """The DER SubjectPublicKeyInfo of a key, which RA-TLS report data bind."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def _pem(certificate: x509.Certificate) -> str:
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _validity(leaf: Leaf) -> tuple[datetime.datetime, datetime.datetime]:
    not_before = NOT_BEFORE if leaf.not_before is None else _time("not_before", leaf.not_before)
    if leaf.not_after is None:
        not_after = datetime.datetime.now(datetime.UTC) + LIFETIME
    else:
        not_after = _time("not_after", leaf.not_after)
    if not_before >= not_after:
        raise Invalid("not_before must be earlier than not_after")
    return not_before, not_after


def _time(name: str, seconds: int) -> datetime.datetime:
    try:
        return datetime.datetime.fromtimestamp(seconds, datetime.UTC)
    except (ValueError, OverflowError, OSError):
        raise Invalid.field(name, "is too far away for a certificate") from None


def _subject(common_name: str) -> x509.Name:
    if not common_name:
        return x509.Name([])
    if len(common_name) > MAX_COMMON_NAME:
        raise Invalid.field("subject", f"must have at most {MAX_COMMON_NAME} characters")
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _alt_names(names: Sequence[str]) -> x509.SubjectAlternativeName:
    return x509.SubjectAlternativeName([_alt_name(name) for name in names])


def _alt_name(name: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(name))
    except ValueError:
        pass
    if not name or not name.isascii():
        raise Invalid.field("alt_names", f"{name!r} is neither a DNS name nor an IP address")
    return x509.DNSName(name)


def _usages(leaf: Leaf) -> list[x509.ObjectIdentifier]:
    usages = []
    if leaf.server_auth:
        usages.append(ExtendedKeyUsageOID.SERVER_AUTH)
    if leaf.client_auth:
        usages.append(ExtendedKeyUsageOID.CLIENT_AUTH)
    return usages


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
