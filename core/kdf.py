"""Deriving keys as dstack does, which the KMS and a guest without one must do alike.

Source: guest-agent.md section 4, kms.md section 1.
"""

from __future__ import annotations

import hashlib

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

# dstack ra-tls kdf.rs (312dc605): the salt of every derivation.
SALT = b"RATLS"
KEY_SIZE = 32


def kdf(key: bytes, *context: bytes) -> bytes:
    """HKDF-SHA256 with the salt `RATLS` and the context items joined, 32 bytes (guest-agent.md section 4)."""
    return HKDF(hashes.SHA256(), KEY_SIZE, SALT, b"".join(context)).derive(key)


def p256_key(scalar: bytes) -> ec.EllipticCurvePrivateKey:
    """The P-256 key of a 32-byte scalar.  Raises ValueError for 0 and the order or more (2^-32 odds)."""
    return ec.derive_private_key(int.from_bytes(scalar, "big"), ec.SECP256R1())


def scalar_of(key: ec.EllipticCurvePrivateKey) -> bytes:
    """The 32-byte scalar of a P-256 key, from which others are derived."""
    return key.private_numbers().private_value.to_bytes(KEY_SIZE, "big")


def pkcs8_pem(key: ec.EllipticCurvePrivateKey) -> str:
    """The unencrypted PKCS#8 PEM text of a key."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    ).decode()


def dh_secret(scalar: bytes) -> bytes:
    """SHA-256 of the PKCS#8 DER of the P-256 key with this scalar (kms.md section 1, `dh`)."""
    der = p256_key(scalar).private_bytes(
        serialization.Encoding.DER,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    return hashlib.sha256(der).digest()
