"""Sealing an app's variables to the key that its KMS gives it; guest/env.py opens them.

Source: kms.md section 7.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping

_NONCE_SIZE = 12


def seal(public_key: bytes, variables: Mapping[str, str]) -> bytes:
    """The variables as only the holder of the app's X25519 key can read them; ValueError for no such key."""
    from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    items = [{"key": name, "value": value} for name, value in variables.items()]
    once = X25519PrivateKey.generate()
    shared = once.exchange(X25519PublicKey.from_public_bytes(public_key))
    nonce = secrets.token_bytes(_NONCE_SIZE)
    sealed = AESGCM(shared).encrypt(nonce, json.dumps({"env": items}).encode(), None)
    return once.public_key().public_bytes_raw() + nonce + sealed
