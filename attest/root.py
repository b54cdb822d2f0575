"""The roots that a verifier trusts beside the vendors' own, and the names that answers give to them."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Literal

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.hazmat.primitives.serialization import Encoding

from attest.errors import Malformed

RootName = Literal["intel", "amd", "simulated", "custom"]


@dataclass(frozen=True)
class Roots:
    """One root for each platform, in DER; None means the vendor's."""

    tdx: bytes | None = None
    snp: bytes | None = None


# A verifier's configuration names one file, which is read at each request.
@functools.lru_cache(maxsize=4)
def read_roots(pem: bytes) -> Roots:
    """The roots in a PEM text: TDX's has an elliptic key, SEV-SNP's an RSA key.  Malformed otherwise."""
    try:
        found = [(cert, cert.public_key()) for cert in x509.load_pem_x509_certificates(pem)]
    except (ValueError, x509.InvalidVersion):
        raise Malformed("the trusted root is not a certificate in PEM") from None
    tdx = [_der(cert) for cert, key in found if isinstance(key, ec.EllipticCurvePublicKey)]
    snp = [_der(cert) for cert, key in found if isinstance(key, rsa.RSAPublicKey)]
    if len(tdx) > 1 or len(snp) > 1 or len(tdx) + len(snp) != len(found):
        raise Malformed(
            "the trusted roots must be one with an elliptic key, one with an RSA key, or both"
        )
    return Roots(tdx[0] if tdx else None, snp[0] if snp else None)


def _der(certificate: x509.Certificate) -> bytes:
    return certificate.public_bytes(Encoding.DER)


def custom_name(root: x509.Certificate) -> RootName:
    """What to call a root that is no vendor's; only a verifier's owner can have named it, so it is believed."""
    return "simulated" if "Simulated" in root.subject.rfc4514_string() else "custom"
