"""secp256k1 and Keccak-256, kept behind one module: the only one that imports coincurve and Crypto.

Recoverable signatures are r (32) || s (32, low) || recovery id 0 or 1 (guest-agent.md section 4).
"""

from __future__ import annotations

import functools
import hashlib
from typing import TYPE_CHECKING

from core.errors import Invalid

if TYPE_CHECKING:
    from coincurve import PrivateKey

SIGNATURE_SIZE = 64


def keccak256(data: bytes) -> bytes:
    """Keccak-256 with the original padding, which is not SHA3-256 (32 bytes)."""
    from Crypto.Hash import keccak

    return keccak.new(digest_bits=256, data=data).digest()


def public_key(key: bytes) -> bytes:
    """The compressed SEC1 public key (33 bytes) of a 32-byte scalar; ValueError when it is none."""
    from coincurve import PublicKey

    return PublicKey.from_secret(key).format()


# A process signs with the one or two root keys that it holds anyway; making such an object costs as much as signing.
@functools.lru_cache(maxsize=2)
def _signer(key: bytes) -> PrivateKey:
    from coincurve import PrivateKey

    return PrivateKey(key)


def sign_recoverable(key: bytes, message: bytes) -> bytes:
    """65-byte recoverable signature over Keccak-256 of the message."""
    return _signer(key).sign_recoverable(keccak256(message), hasher=None)


def recover(signature: bytes, message: bytes) -> bytes:
    """The compressed public key that made a 65-byte recoverable signature over Keccak-256 of the message."""
    from coincurve import PublicKey

    return PublicKey.from_signature_and_message(signature, keccak256(message), hasher=None).format()


def uncompressed(public: bytes) -> bytes:
    """A SEC1 public key in its long form (65 bytes); ValueError when it is no point."""
    from coincurve import PublicKey

    return PublicKey(public).format(compressed=False)


def sign_digest(key: bytes, digest: bytes) -> bytes:
    """64-byte r || s over a 32-byte digest: RFC 6979 nonce, low s."""
    return _signer(key).sign_recoverable(digest, hasher=None)[:SIGNATURE_SIZE]


def verify_digest(public: bytes, digest: bytes, signature: bytes) -> bool:
    """Whether r || s with low s is the key's signature over a 32-byte digest.

    Raises Invalid when `public` is no compressed or uncompressed SEC1 point.
    """
    from coincurve import PublicKey
    from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

    if (len(public), public[:1]) not in ((33, b"\2"), (33, b"\3"), (65, b"\4")):
        raise Invalid.field("public_key", "must be a compressed or uncompressed SEC1 key")
    try:
        point = PublicKey(public)
    except ValueError:
        raise Invalid.field("public_key", "is not a point of secp256k1") from None
    r, s = (int.from_bytes(part, "big") for part in (signature[:32], signature[32:]))
    return point.verify(encode_dss_signature(r, s), digest, hasher=None)


def sha256(data: bytes) -> bytes:
    """SHA-256, the digest that plain secp256k1 signing uses."""
    return hashlib.sha256(data).digest()
