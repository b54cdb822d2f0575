"""The app's keys: the file they are kept in, what is derived from them, and signing with it.

Source: guest-agent.md sections 3 and 4, kms.md section 1.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from core import files, k256
from core.errors import Invalid
from core.kdf import dh_secret, kdf, p256_key

# RFC 8032 section 5.1: the field and the curve constant of Ed25519.
_ED25519_P = 2**255 - 19
_ED25519_D = -121665 * pow(121666, -1, _ED25519_P) % _ED25519_P
_NO_ED25519_KEY = "is not an Ed25519 public key of 32 bytes"
MAX_KEYS_FILE = 64 * 1024
ED25519 = "ed25519"
SECP256K1 = "secp256k1"
PREHASHED = "secp256k1_prehashed"
# guest-agent.md section 4: Sign and the app-key attestation use this key of GetKey.
SIGNING_PATH = "vms"
SIGNING_PURPOSE = "signing"


# How the key-provider event and Info name each kind, and the keys file its parts (guest-agent.md sections 3
# and 5).
PROVIDER_NAMES = {"None": "none", "Local": "local-sgx", "Tpm": "tpm", "Kms": "kms"}
_PROVIDER_FIELDS: Mapping[str, Mapping[str, str]] = {
    "None": {"key_pem": "key"},
    "Local": {"key_pem": "key", "id": "mr"},
    "Tpm": {"key_pem": "key", "id": "pubkey"},
    "Kms": {
        "url": "url",
        "id": "pubkey",
        "tmp_ca_key": "tmp_ca_key",
        "tmp_ca_cert": "tmp_ca_cert",
    },
}


@dataclass(frozen=True)
class KeyProvider:
    """Who gave the keys: `kind` as the keys file names it, its CA key, and its id (hex or empty).

    A KMS keeps its key to itself; it has an address and a CA for strangers instead.
    """

    kind: str
    key_pem: str = field(default="", repr=False)
    id: str = ""
    url: str = ""
    tmp_ca_key: str = field(default="", repr=False)
    tmp_ca_cert: str = ""

    @property
    def info(self) -> str:
        """The `{"name", "id"}` JSON text of the key-provider event."""
        return json.dumps({"name": PROVIDER_NAMES[self.kind], "id": self.id}, separators=(",", ":"))

    @classmethod
    def read(cls, given: object) -> KeyProvider:
        """Reads `{"None": {"key": PEM}}` and its like; Invalid for anything else."""
        if not isinstance(given, Mapping) or len(given) != 1:
            raise Invalid.field("key_provider", "must name exactly one provider")
        (kind, inner), *_ = given.items()
        if kind not in PROVIDER_NAMES or not isinstance(inner, Mapping):
            raise Invalid.field("key_provider", f"{kind} is not a known provider")
        values = {name: str(inner.get(key, "")) for name, key in _PROVIDER_FIELDS[kind].items()}
        return cls(kind, **values)

    def to_json(self) -> dict[str, dict[str, str]]:
        """What read() takes."""
        fields = _PROVIDER_FIELDS[self.kind].items()
        return {self.kind: {key: str(getattr(self, name)) for name, key in fields}}


@dataclass(frozen=True)
class AppKeys:
    """The keys file: raw keys as bytes (`env_crypt_key` and `k256_signature` may be empty), CA as PEM."""

    disk_crypt_key: bytes
    env_crypt_key: bytes
    k256_key: bytes
    k256_signature: bytes
    gateway_app_id: str
    ca_cert: str
    key_provider: KeyProvider

    @classmethod
    def read(cls, raw: bytes) -> AppKeys:
        """Reads `.appkeys.json`; Invalid names the field that is wrong."""
        try:
            given = json.loads(raw)
        except ValueError as error:
            raise Invalid(f"the keys file is not valid JSON: {error}") from None
        if not isinstance(given, Mapping):
            raise Invalid("the keys file must be a JSON object")
        return cls(
            disk_crypt_key=_hex(given, "disk_crypt_key", 32),
            env_crypt_key=_hex(given, "env_crypt_key", 32, 0),
            k256_key=_hex(given, "k256_key", 32),
            k256_signature=_hex(given, "k256_signature", 65, 0),
            gateway_app_id=str(given.get("gateway_app_id") or ""),
            ca_cert=str(given.get("ca_cert") or ""),
            key_provider=KeyProvider.read(given.get("key_provider")),
        )

    def to_json(self) -> str:
        """The text of the keys file; the caller keeps it mode 0600."""
        fields = {
            "disk_crypt_key": self.disk_crypt_key.hex(),
            "env_crypt_key": self.env_crypt_key.hex(),
            "k256_key": self.k256_key.hex(),
            "k256_signature": self.k256_signature.hex(),
            "gateway_app_id": self.gateway_app_id,
            "ca_cert": self.ca_cert,
            "key_provider": self.key_provider.to_json(),
        }
        return json.dumps(fields, indent=2)


def load(path: Path) -> AppKeys:
    """Reads the keys file; FileNotFoundError while the boot has not written it."""
    return AppKeys.read(files.read_capped(path, MAX_KEYS_FILE))


def _hex(given: Mapping[str, Any], name: str, *sizes: int) -> bytes:
    try:
        value = bytes.fromhex(given.get(name) or "")
    except (TypeError, ValueError):
        raise Invalid.field(name, "must be hex text") from None
    if len(value) not in sizes:
        raise Invalid.field(name, f"must be {sizes[0]} bytes of hex")
    return value


@dataclass(frozen=True)
class SeedKeys:
    """What a guest without a KMS derives from one 32-byte seed (kms.md section 1, last paragraph)."""

    ca_key: ec.EllipticCurvePrivateKey
    disk_crypt_key: bytes
    k256_key: bytes


def from_seed(seed: bytes) -> SeedKeys:
    """The CA key, disk key and k256 key of a seed."""
    return SeedKeys(
        ca_key=p256_key(kdf(seed, b"app-key")),
        disk_crypt_key=dh_secret(kdf(seed, b"app-disk-key")),
        k256_key=kdf(seed, b"app-k256-key"),
    )


def base_algorithm(algorithm: str) -> str:
    """`ed25519` or `secp256k1` for every name that GetKey takes, else Invalid."""
    if algorithm in ("", "k256", SECP256K1):
        return SECP256K1
    if algorithm == ED25519:
        return ED25519
    raise Invalid("Unsupported algorithm")


def public_key(algorithm: str, key: bytes) -> bytes:
    """The compressed SEC1 key (33 bytes) or the Ed25519 key (32 bytes) of 32 secret bytes."""
    if algorithm == ED25519:
        private = ed25519.Ed25519PrivateKey.from_private_bytes(key)
        return private.public_key().public_bytes_raw()
    return k256.public_key(key)


@dataclass(frozen=True)
class DerivedKey:
    """A key for the app: 32 secret bytes, its public key, and the two links that vouch for it."""

    key: bytes
    public_key: bytes
    signature_chain: tuple[bytes, bytes]


def derive(keys: AppKeys, path: str, purpose: str, algorithm: str) -> DerivedKey:
    """The answer of GetKey (guest-agent.md section 4); the path is used as it is."""
    base = base_algorithm(algorithm)
    key = kdf(keys.k256_key, path.encode())
    public = public_key(base, key)
    link = k256.sign_recoverable(keys.k256_key, f"{purpose}:{public.hex()}".encode())
    return DerivedKey(key, public, (link, keys.k256_signature))


@functools.lru_cache(maxsize=2)
def signing_key(keys: AppKeys, base: str) -> DerivedKey:
    """The key of Sign, which is always the same for an algorithm."""
    return derive(keys, SIGNING_PATH, SIGNING_PURPOSE, base)


# Sign has one key; making such an object costs as much as signing.
@functools.lru_cache(maxsize=1)
def _ed25519_signer(key: bytes) -> ed25519.Ed25519PrivateKey:
    return ed25519.Ed25519PrivateKey.from_private_bytes(key)


def sign(key: bytes, algorithm: str, data: bytes) -> bytes:
    """64-byte signature as the Sign call makes it; Invalid for an unknown algorithm or a bad digest."""
    if algorithm == ED25519:
        return _ed25519_signer(key).sign(data)
    return k256.sign_digest(key, _signed_digest(algorithm, data))


def verify(algorithm: str, data: bytes, signature: bytes, public: bytes) -> bool:
    """Whether a signature of the Verify call is valid; Invalid for input that is not well formed."""
    if len(signature) != k256.SIGNATURE_SIZE:
        raise Invalid.field("signature", f"must be {k256.SIGNATURE_SIZE} bytes")
    if algorithm == ED25519:
        return _verify_ed25519(public, data, signature)
    return k256.verify_digest(public, _signed_digest(algorithm, data), signature)


def _signed_digest(algorithm: str, data: bytes) -> bytes:
    if algorithm in (SECP256K1, "k256"):
        return k256.sha256(data)
    if algorithm != PREHASHED:
        raise Invalid("Unsupported algorithm")
    if len(data) != 32:
        raise Invalid(
            f"Pre-hashed signing requires a 32-byte digest, but received {len(data)} bytes"
        )
    return data


def _verify_ed25519(public: bytes, data: bytes, signature: bytes) -> bool:
    from cryptography.exceptions import InvalidSignature

    if len(public) != 32:
        raise Invalid.field("public_key", _NO_ED25519_KEY)
    try:
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except InvalidSignature:
        # Only now, for it costs as much as the verification.
        if not _is_ed25519_point(public):
            raise Invalid.field("public_key", _NO_ED25519_KEY) from None
        return False
    return True


def _is_ed25519_point(public: bytes) -> bool:
    """Whether 32 bytes decode to a point (RFC 8032 section 5.1.3), which the library only finds out later."""
    p = _ED25519_P
    y = int.from_bytes(public, "little") & (2**255 - 1)
    sign = public[31] >> 7
    if y >= p:
        return False
    x_squared = (y * y - 1) * pow(_ED25519_D * y * y + 1, -1, p) % p
    return sign == 0 if x_squared == 0 else pow(x_squared, (p - 1) // 2, p) == 1


def signing_algorithm(algorithm: str) -> str:
    """The base algorithm of a Sign or app-key attestation call, where the empty name is not one."""
    if algorithm == ED25519:
        return ED25519
    if algorithm in (SECP256K1, "k256", PREHASHED):
        return SECP256K1
    raise Invalid("Unsupported algorithm")
