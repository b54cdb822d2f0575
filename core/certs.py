"""Making X.509 certificates: authorities and leaves on P-256, as the KMS and a guest without one issue them.

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

from core.errors import Invalid

LIFETIME = datetime.timedelta(days=3650)
# guest-agent.md section 4: well in the past, so that no clock is too slow for the certificate.
NOT_BEFORE = datetime.datetime(1975, 1, 1, tzinfo=datetime.UTC)
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
    organization: str = ""


@dataclass(frozen=True)
class Issuer:
    """An authority: its key and certificate."""

    key: ec.EllipticCurvePrivateKey
    certificate: x509.Certificate

    def issue(self, public_key: ec.EllipticCurvePublicKey, leaf: Leaf) -> str:
        """The leaf in PEM; Invalid names the field that cannot stand in a certificate."""
        subject = name(leaf.subject, leaf.organization)
        builder = _builder(subject, self.certificate.subject, public_key, *_validity(leaf))
        builder = builder.add_extension(key_usage(is_ca=False), critical=True)
        builder = builder.add_extension(self._authority(), critical=False)
        if leaf.alt_names:
            # RFC 5280 4.2.1.6: critical when it is the only name.
            builder = builder.add_extension(_alt_names(leaf.alt_names), critical=not leaf.subject)
        usages = _usages(leaf)
        if usages:
            builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        for extension in leaf.extensions:
            builder = builder.add_extension(extension, critical=False)
        return pem(builder.sign(self.key, hashes.SHA256()))

    def _authority(self) -> x509.AuthorityKeyIdentifier:
        try:
            found = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier)
        except x509.ExtensionNotFound:
            return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(found.value)


def authority(
    key: ec.EllipticCurvePrivateKey,
    subject: x509.Name,
    *,
    path_length: int,
    issuer: Issuer | None = None,
    extensions: Sequence[x509.UnrecognizedExtension] = (),
) -> str:
    """The certificate of an authority in PEM, self-signed without an issuer."""
    signer = issuer.key if issuer else key
    signed_by = issuer.certificate.subject if issuer else subject
    until = datetime.datetime.now(datetime.UTC) + LIFETIME
    builder = _builder(subject, signed_by, key.public_key(), NOT_BEFORE, until)
    constraints = x509.BasicConstraints(ca=True, path_length=path_length)
    builder = builder.add_extension(constraints, critical=True)
    builder = builder.add_extension(key_usage(is_ca=True), critical=True)
    if issuer:
        builder = builder.add_extension(issuer._authority(), critical=False)
    for extension in extensions:
        builder = builder.add_extension(extension, critical=False)
    return pem(builder.sign(signer, hashes.SHA256()))


def name(common_name: str, organization: str = "") -> x509.Name:
    """A subject of up to two parts; Invalid when the common name does not fit."""
    if len(common_name) > MAX_COMMON_NAME:
        raise Invalid.field("subject", f"must have at most {MAX_COMMON_NAME} characters")
    if len(organization) > MAX_COMMON_NAME:
        raise Invalid.field("org_name", f"must have at most {MAX_COMMON_NAME} characters")
    parts = ((NameOID.ORGANIZATION_NAME, organization), (NameOID.COMMON_NAME, common_name))
    return x509.Name([x509.NameAttribute(oid, text) for oid, text in parts if text])


def spki_der(key: ec.EllipticCurvePublicKey) -> bytes:
    """The DER SubjectPublicKeyInfo of a key, which RA-TLS report data bind."""
    return key.public_bytes(
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )


def pem(certificate: x509.Certificate) -> str:
    """A certificate in PEM."""
    return certificate.public_bytes(serialization.Encoding.PEM).decode()


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    not_before: datetime.datetime,
    not_after: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


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


def key_usage(*, is_ca: bool, signs: bool = True) -> x509.KeyUsage:
    """What the key of a certificate is for: certificates if it is an authority's; other things if it `signs`."""
    return x509.KeyUsage(
        digital_signature=signs,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=is_ca,
        crl_sign=is_ca,
        encipher_only=False,
        decipher_only=False,
    )
