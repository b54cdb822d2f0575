"""Derivations against the published answers and against HKDF written out."""

from __future__ import annotations

import hmac
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from core.kdf import dh_secret, kdf, p256_key, pkcs8_pem, scalar_of
from tests.unit.guest.conftest import known_answers, vectors

__all__ = ["known_answers", "vectors"]


def test_dh_secret_is_the_published_one(known_answers: dict[str, Any]) -> None:
    given = known_answers["dh_secret_upstream"]
    root = serialization.load_der_private_key(bytes.fromhex(given["root_key_pkcs8_der"]), None)
    assert isinstance(root, ec.EllipticCurvePrivateKey)
    scalar = root.private_numbers().private_value.to_bytes(32, "big")

    derived = kdf(scalar, *(text.encode() for text in given["context"]))

    assert dh_secret(derived).hex() == given["secret"]


def test_the_context_items_are_joined_without_a_mark() -> None:
    extracted = hmac.digest(b"RATLS", b"key", "sha256")

    assert kdf(b"key", b"ab", b"c") == kdf(b"key", b"a", b"bc")
    assert kdf(b"key", b"abc") == hmac.digest(extracted, b"abc\1", "sha256")


def test_a_scalar_and_its_key_are_one() -> None:
    key = p256_key(bytes(31) + b"\x07")

    assert scalar_of(key) == bytes(31) + b"\x07"
    assert pkcs8_pem(key).startswith("-----BEGIN PRIVATE KEY-----")
