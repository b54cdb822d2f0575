"""The two root keys on disk: made once, read at every start, never half there.

Source: kms.md section 1.
"""

from __future__ import annotations

import os
from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from core import files, k256
from core.errors import Conflict, Invalid
from core.kdf import KEY_SIZE, pkcs8_pem
from kms.derive import RootKeys

CA_KEY = "root-ca.key"
CA_CERT = "root-ca.crt"
K256_KEY = "root-k256.key"
TMP_CA_KEY = "tmp-ca.key"


def exist(folder: Path) -> bool:
    """Whether the folder has both root keys.

    Raises Conflict when one of them is gone: new ones in its place would lock out every app.  A key that
    was written just before a crash and never used (nothing was certified yet) counts as none.
    """
    has_ca, has_k256 = (folder / CA_KEY).exists(), (folder / K256_KEY).exists()
    missing = K256_KEY if has_ca else CA_KEY
    if has_ca != has_k256 and (folder / CA_CERT).exists():
        raise Conflict(f"{folder / missing} is gone; restore it from a backup")
    return has_ca and has_k256


def create() -> RootKeys:
    """New root keys."""
    # Any 32 bytes below the order; the library draws again until they are.
    from coincurve import PrivateKey

    return RootKeys(ec.generate_private_key(ec.SECP256R1()), PrivateKey().secret)


def save(folder: Path, keys: RootKeys, tmp_ca_key: ec.EllipticCurvePrivateKey) -> None:
    """Writes the keys of a KMS that had none; Conflict when it has."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder.chmod(0o700)
    with files.locked(folder / ".lock"):
        if exist(folder):
            raise Conflict("this KMS has its keys already")
        files.write_atomic(folder / TMP_CA_KEY, pkcs8_pem(tmp_ca_key))
        files.write_atomic(folder / K256_KEY, keys.k256)
        files.write_atomic(folder / CA_KEY, pkcs8_pem(keys.ca))


def load(folder: Path) -> RootKeys:
    """The root keys; Invalid when a file is not what it should be, Conflict when others can read one."""
    for left in folder.glob(f"*{files.UNFINISHED}"):
        left.unlink(missing_ok=True)  # by a process that was killed, perhaps with a key in it
    for name in (CA_KEY, K256_KEY):
        check_closed(folder / name)
    return from_bytes(load_key(folder / CA_KEY), (folder / K256_KEY).read_bytes())


def check_closed(path: Path) -> None:
    """Refuses (Conflict) a key file that others can read."""
    if os.stat(path).st_mode & 0o077:
        raise Conflict(f"{path} can be read by others; run: chmod 600 on it")


def from_bytes(ca: ec.EllipticCurvePrivateKey, secret: bytes) -> RootKeys:
    """Root keys out of their parts; Invalid when the second is no secp256k1 key of 32 bytes."""
    try:
        if len(secret) != KEY_SIZE:
            raise ValueError
        k256.public_key(secret)
    except ValueError:
        raise Invalid.field(K256_KEY, "must be a secp256k1 key of 32 raw bytes") from None
    return RootKeys(ca, secret)


def load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    """A P-256 key in PEM from a file; Invalid when it is another."""
    return read_key(path.read_bytes(), path.name)


def read_key(text: bytes, name: str) -> ec.EllipticCurvePrivateKey:
    """A P-256 key in PEM; Invalid, with `name`, when it is another."""
    try:
        key = serialization.load_pem_private_key(text, None)
    except (ValueError, TypeError):
        raise Invalid.field(name, "must be a private key in PEM without a password") from None
    if not isinstance(key, ec.EllipticCurvePrivateKey) or not isinstance(key.curve, ec.SECP256R1):
        raise Invalid.field(name, "must be a P-256 key")
    return key
