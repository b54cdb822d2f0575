"""A TLS server's certificate as the checks of live hosts show and judge it.

Source: RFC 6125, section 6.4 (which names a certificate stands for).
"""

from __future__ import annotations

import datetime
import hashlib
import ipaddress

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from core.errors import Upstream


def read(der: bytes) -> x509.Certificate:
    """The certificate in DER; Upstream when the peer showed something else."""
    try:
        return x509.load_der_x509_certificate(der)
    except (ValueError, x509.InvalidVersion):
        raise Upstream("the peer's certificate cannot be read") from None


def spki(certificate: x509.Certificate) -> bytes:
    """The DER SubjectPublicKeyInfo; Upstream when its key is of an unknown kind."""
    try:
        key = certificate.public_key()
    except (ValueError, UnsupportedAlgorithm):
        raise Upstream("the peer's certificate has an unknown key") from None
    return key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)


def described(certificate: x509.Certificate) -> dict[str, str]:
    """What answers say of a certificate; digests in hex."""
    der = certificate.public_bytes(Encoding.DER)
    return {
        "subject": _name(certificate, "subject"),
        "issuer": _name(certificate, "issuer"),
        "notBefore": _moment(certificate.not_valid_before_utc),
        "notAfter": _moment(certificate.not_valid_after_utc),
        "sha256": hashlib.sha256(der).hexdigest(),
        "spkiSha256": hashlib.sha256(spki(certificate)).hexdigest(),
    }


def _name(certificate: x509.Certificate, part: str) -> str:
    try:
        name: x509.Name = getattr(certificate, part)
    except ValueError:
        return ""  # a broken name proves nothing and forbids nothing
    return name.rfc4514_string()


def _moment(at: datetime.datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%SZ")


def is_current(certificate: x509.Certificate, now: int) -> bool:
    """Whether the certificate is valid at the Unix time `now`."""
    moment = datetime.datetime.fromtimestamp(now, datetime.UTC)
    return certificate.not_valid_before_utc <= moment <= certificate.not_valid_after_utc


def stands_for(certificate: x509.Certificate, host: str) -> bool:
    """Whether one of the certificate's names is the host's."""
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
    except (x509.ExtensionNotFound, x509.DuplicateExtension, ValueError):
        return False
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        names = extension.value.get_values_for_type(x509.DNSName)
        return any(_matches(name.lower(), host.lower().removesuffix(".")) for name in names)
    return address in extension.value.get_values_for_type(x509.IPAddress)


def _matches(name: str, host: str) -> bool:
    if not name.startswith("*."):
        return name == host
    # A star stands for one label, the first.
    return host.partition(".")[2] == name[2:]


def key_of(pem: bytes) -> bytes | None:
    """The public key (DER) of the first certificate in a text, or None."""
    try:
        return spki(x509.load_pem_x509_certificates(pem)[0])
    except (ValueError, x509.InvalidVersion, Upstream):
        return None
