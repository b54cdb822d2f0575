"""The app's own certificate authority, where no KMS is one for it.

Source: guest-agent.md section 4, kms.md section 1.
"""

from __future__ import annotations

from collections.abc import Sequence

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from core import certs
from core.certs import Issuer
from core.errors import Invalid
from guest.keys import KeyProvider

ROOT_NAME = "App Root Cert"


def issuer_of(provider: KeyProvider, ca_cert: str) -> Issuer:
    """The CA of a guest without a KMS; Invalid when its key is of another kind."""
    key = serialization.load_pem_private_key(provider.key_pem.encode(), None)
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise Invalid("the key provider's key is not an elliptic curve key")
    return Issuer(key, x509.load_pem_x509_certificate(ca_cert.encode()))


def root(
    key: ec.EllipticCurvePrivateKey, extensions: Sequence[x509.UnrecognizedExtension] = ()
) -> str:
    """The self-signed root of an app without a KMS, in PEM."""
    return certs.authority(key, certs.name(ROOT_NAME), path_length=0, extensions=extensions)
