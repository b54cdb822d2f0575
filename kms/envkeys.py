"""The public key that anybody may encrypt an app's environment to, signed so that clients know whose it is.

Source: kms.md section 3 (GetAppEnvEncryptPubKey).
"""

from __future__ import annotations

from dataclasses import dataclass

from core import k256
from kms import derive
from kms.derive import RootKeys

_PREFIX = b"dstack-env-encrypt-pubkey:"


@dataclass(frozen=True)
class EnvKey:
    """The key with two signatures of the root k256 key: the older without the time, the newer with it."""

    public_key: bytes
    signature: bytes
    timestamp: int
    signature_v1: bytes


def env_key(root: RootKeys, app_id: bytes, now: int) -> EnvKey:
    """The answer for an app at a Unix time; Invalid when the app id is not 20 bytes."""
    public = derive.env_public_key(root, app_id)
    return EnvKey(
        public_key=public,
        signature=k256.sign_recoverable(root.k256, signed_text(app_id, public)),
        timestamp=now,
        signature_v1=k256.sign_recoverable(root.k256, signed_text(app_id, public, now)),
    )


def signed_text(app_id: bytes, public_key: bytes, timestamp: int | None = None) -> bytes:
    """What is signed; without a timestamp the older form."""
    time = b"" if timestamp is None else timestamp.to_bytes(8, "big")
    return _PREFIX + app_id + time + public_key
