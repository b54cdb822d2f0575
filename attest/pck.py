"""The certificate chain inside a quote, and the platform that its leaf names.

Source of the extension: Intel SGX PCK Certificate and CRL Profile Specification, section 1.3.5.
"""

from __future__ import annotations

from dataclasses import dataclass

from cryptography import x509

from attest import der
from attest.errors import Malformed

# Real chains have about 4 KiB.
MAX_CHAIN = 64 * 1024

SGX_EXTENSIONS = x509.ObjectIdentifier("1.2.840.113741.1.13.1")

_PPID = der.oid("1.2.840.113741.1.13.1.1")
_PCE_ID = der.oid("1.2.840.113741.1.13.1.3")
_FMSPC = der.oid("1.2.840.113741.1.13.1.4")


@dataclass(frozen=True)
class Platform:
    """The machine that a PCK certificate was made for: platform id (16), PCE id (2), family code (6)."""

    ppid: bytes
    pce_id: bytes
    fmspc: bytes


def certificates(chain_pem: bytes) -> list[x509.Certificate]:
    """The certificates of a quote's chain, leaf first; Malformed when there are none or one is broken."""
    if len(chain_pem) > MAX_CHAIN:
        raise Malformed("quote: its PCK certificate chain is larger than 64 KiB")
    try:
        # Intel's quoting enclave ends the text with a NUL.
        return x509.load_pem_x509_certificates(chain_pem.rstrip(b"\0"))
    except (ValueError, x509.InvalidVersion):
        raise Malformed("quote: its PCK certificate chain cannot be read") from None


def platform(leaf: x509.Certificate) -> Platform:
    """The platform a PCK leaf names; Malformed when it has no such extension or a broken one."""
    values = _extension_values(leaf)
    return Platform(
        ppid=_octets(values, _PPID, 16),
        pce_id=_octets(values, _PCE_ID, 2),
        fmspc=_octets(values, _FMSPC, 6),
    )


def _extension_values(leaf: x509.Certificate) -> dict[bytes, bytes]:
    try:
        extension = leaf.extensions.get_extension_for_oid(SGX_EXTENSIONS).value
    except (ValueError, x509.ExtensionNotFound, x509.DuplicateExtension):
        raise Malformed("quote: its PCK certificate names no platform") from None
    # The cryptography library knows no such extension and hands out its bytes.
    assert isinstance(extension, x509.UnrecognizedExtension)
    values = {}
    for tag, entry in der.elements(der.content(extension.value, der.SEQUENCE)):
        parts = der.elements(entry)
        if tag != der.SEQUENCE or len(parts) != 2 or parts[0][0] != der.OID:
            raise Malformed("quote: its PCK certificate names its platform in an unknown form")
        values[der.element(*parts[0])] = der.element(*parts[1])
    return values


def _octets(values: dict[bytes, bytes], oid: bytes, size: int) -> bytes:
    octets = der.content(values.get(oid, b""), der.OCTET_STRING)
    if len(octets) != size:
        raise Malformed("quote: its PCK certificate names its platform with a wrong length")
    return octets
