"""Every key that a KMS gives out, as a function of its two root keys and who asks.

Source: kms.md section 1.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

from core import k256
from core.errors import Invalid
from core.kdf import dh_secret, kdf, p256_key, scalar_of

APP_ID_SIZE = 20
_ISSUED = b"dstack-kms-issued:"


@dataclass(frozen=True)
class RootKeys:
    """The two secrets that everything else is derived from."""

    ca: ec.EllipticCurvePrivateKey = field(repr=False)
    k256: bytes = field(repr=False)

    @property
    def k256_public(self) -> bytes:
        """The compressed public key (33 bytes) that app keys are vouched for with."""
        return k256.public_key(self.k256)


@dataclass(frozen=True)
class AppKeys:
    """What one instance of an app is given; 32 bytes each, the signature 65."""

    disk_crypt_key: bytes = field(repr=False)
    env_crypt_key: bytes = field(repr=False)
    k256_key: bytes = field(repr=False)
    k256_signature: bytes


def check_app_id(app_id: bytes) -> bytes:
    """The app id itself; Invalid when it has another length, for then two apps could share keys."""
    if len(app_id) != APP_ID_SIZE:
        raise Invalid("app_id must be 20 bytes")
    return app_id


def app_keys(root: RootKeys, app_id: bytes, instance_id: bytes) -> AppKeys:
    """The keys of an instance; all but the disk's are the same in every instance of the app."""
    key = kdf(root.k256, check_app_id(app_id), b"app-key")
    return AppKeys(
        disk_crypt_key=_dh(root, app_id, instance_id, b"app-disk-crypt-key"),
        env_crypt_key=env_crypt_key(root, app_id),
        k256_key=key,
        k256_signature=k256.sign_recoverable(root.k256, _ISSUED + app_id + k256.public_key(key)),
    )


def env_crypt_key(root: RootKeys, app_id: bytes) -> bytes:
    """The X25519 private key (unclamped) that opens the app's environment."""
    return _dh(root, check_app_id(app_id), b"env-encrypt-key")


def env_public_key(root: RootKeys, app_id: bytes) -> bytes:
    """The X25519 public key that an app's environment is encrypted to."""
    private = X25519PrivateKey.from_private_bytes(env_crypt_key(root, app_id))
    return private.public_key().public_bytes_raw()


def app_ca_key(root: RootKeys, app_id: bytes) -> ec.EllipticCurvePrivateKey:
    """The key of the app's own certificate authority."""
    return p256_key(kdf(scalar_of(root.ca), check_app_id(app_id), b"app-ca"))


def _dh(root: RootKeys, *context: bytes) -> bytes:
    return dh_secret(kdf(scalar_of(root.ca), *context))
