"""The three ways in which secrets and registry credentials come, opened at once or refused.

Source: secretvm.md section 4 (the public client's code, commit 94f38b5).
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import re
from dataclasses import dataclass, field
from pathlib import Path

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes, padding, serialization
from cryptography.hazmat.primitives.asymmetric import padding as rsa_padding
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.ciphers.aead import AESSIV

from core.errors import Invalid
from core.files import write_once

# Names of the credentials as the guest's sign-in to a registry reads them.
REGISTRY, USERNAME, PASSWORD = (
    "DSTACK_DOCKER_REGISTRY",
    "DSTACK_DOCKER_USERNAME",
    "DSTACK_DOCKER_PASSWORD",
)
CREDENTIALS = frozenset((REGISTRY, USERNAME, PASSWORD))
# Of guest/env.py, so that what the guest would refuse is refused here.
MAX_ITEMS = 1024
MAX_VALUE = 128 * 1024
# The sealed form has room for this much (vmm/configuration.py, encrypted_env).
MAX_TOTAL = 160 * 1024
RSA_BITS = 3072
KEY_FILE = "secretvm-keys.json"

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
_SALTED = b"Salted__"
_KEY_TEXT = re.compile(rb"[A-Za-z0-9+/]{43}=")
_OAEP = rsa_padding.OAEP(rsa_padding.MGF1(hashes.SHA1()), hashes.SHA1(), None)


@dataclass(frozen=True)
class Given:
    """The fields of a request that carry secrets, as they came; empty ones were not given."""

    secrets_plaintext: str = field(default="", repr=False)
    secrets_encrypted: str = ""
    secrets_key: str = ""
    docker_credentials_encrypted: str = ""
    docker_credentials_key: str = ""
    secrets_cipher: str = ""
    kms_docker_cipher: str = ""
    kms_docker_username: str = ""
    kms_docker_repository: str = ""

    def opened(self, keys: Keys) -> dict[str, str]:
        """The variables and credentials, by name; Invalid when a part is missing, broken or not for these keys."""
        self._check_one_scheme()
        return {**self._variables(keys), **self._credentials(keys)}

    def _check_one_scheme(self) -> None:
        schemes = {
            "secrets_plaintext": self.secrets_plaintext,
            "secrets_encrypted": self.secrets_encrypted or self.docker_credentials_encrypted,
            "secrets_cipher": self.secrets_cipher or self.kms_docker_cipher,
        }
        used = [name for name, value in schemes.items() if value]
        if len(used) > 1:
            raise Invalid.field(used[1], f"comes beside {used[0]}; use one way of sending secrets")
        for sealed, key in (
            ("secrets_encrypted", "secrets_key"),
            ("docker_credentials_encrypted", "docker_credentials_key"),
            ("kms_docker_cipher", "kms_docker_username"),
            ("kms_docker_cipher", "kms_docker_repository"),
        ):
            if bool(getattr(self, sealed)) != bool(getattr(self, key)):
                missing = key if getattr(self, sealed) else sealed
                raise Invalid.field(missing, f"is missing: {sealed} and {key} belong together")

    def _variables(self, keys: Keys) -> dict[str, str]:
        if self.secrets_encrypted:
            raw = keys.open_envelope("secrets", self.secrets_encrypted, self.secrets_key)
            return variables("secrets_encrypted", raw)
        if self.secrets_cipher:
            return variables("secrets_cipher", keys.open_siv("secrets_cipher", self.secrets_cipher))
        return variables("secrets_plaintext", self.secrets_plaintext.encode())

    def _credentials(self, keys: Keys) -> dict[str, str]:
        if self.kms_docker_cipher:
            password = keys.open_siv("kms_docker_cipher", self.kms_docker_cipher)
            text = _text("kms_docker_cipher", password)
            return _sign_in(self.kms_docker_repository, self.kms_docker_username, text)
        if not self.docker_credentials_encrypted:
            return {}
        name = "docker_credentials"
        raw = keys.open_envelope(
            name, self.docker_credentials_encrypted, self.docker_credentials_key
        )
        try:
            told = json.loads(raw)
            parts = [told[key] for key in ("repository", "username", "password")]
        except (ValueError, KeyError, TypeError, RecursionError):
            parts = [None]
        if not all(isinstance(each, str) for each in parts):
            raise Invalid.field(
                f"{name}_encrypted", "must hold JSON with repository, username and password"
            )
        return _sign_in(*parts)


@dataclass(frozen=True)
class Keys:
    """The private keys that tenants encrypt to, made once and kept in a file of mode 0600."""

    rsa_key: rsa.RSAPrivateKey = field(repr=False)
    x25519_key: X25519PrivateKey = field(repr=False)

    @classmethod
    def kept(cls, data_dir: Path) -> Keys:
        """The keys of a data directory."""
        path = data_dir / KEY_FILE
        raw = path.read_bytes() if path.exists() else write_once(path, _made())
        told = json.loads(raw)
        key = serialization.load_pem_private_key(told["rsa"].encode(), None)
        if not isinstance(key, rsa.RSAPrivateKey):
            raise TypeError(f"{path}: rsa is no RSA key")
        return cls(key, X25519PrivateKey.from_private_bytes(bytes.fromhex(told["x25519"])))

    def public(self) -> dict[str, str]:
        """What clients encrypt to: an RSA key in PEM, an X25519 key in hex."""
        pem = self.rsa_key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        return {
            "rsa_public_key": pem.decode(),
            "kms_contract_public_key": self.x25519_key.public_key().public_bytes_raw().hex(),
        }

    def open_envelope(self, name: str, encrypted: str, key: str) -> bytes:
        """The text that OpenSSL's salted AES-256-CBC hides under a key that RSA hides.

        One refusal for whatever is wrong, so that nobody learns by asking how far decryption came.
        """
        try:
            sealed = base64.b64decode(encrypted, validate=True)
            secret = self._unwrapped(base64.b64decode(key, validate=True))
            return _open_salted(secret, sealed)
        except (ValueError, binascii.Error):
            raise Invalid.field(
                f"{name}_encrypted",
                f"cannot be decrypted with {name}_key and the key of this service "
                "(GET /api/vm/encryption-keys)",
            ) from None

    def open_siv(self, name: str, text: str) -> bytes:
        """The text under AES-SIV with the key that an X25519 exchange gives."""
        try:
            raw = bytes.fromhex(text)
            shared = self.x25519_key.exchange(X25519PublicKey.from_public_bytes(raw[:32]))
            return AESSIV(shared).decrypt(raw[32:], [b""])
        except (ValueError, InvalidTag):
            raise Invalid.field(
                name,
                "cannot be decrypted with the key of this service (GET /api/vm/encryption-keys)",
            ) from None

    def _unwrapped(self, wrapped: bytes) -> bytes:
        """The 44 characters under OAEP or PKCS#1 v1.5; both are tried whichever it is."""
        if len(wrapped) != self.rsa_key.key_size // 8:
            raise ValueError
        # OpenSSL answers a broken PKCS#1 v1.5 padding with random bytes instead of an error.
        older = self.rsa_key.decrypt(wrapped, rsa_padding.PKCS1v15())
        try:
            newer = self.rsa_key.decrypt(wrapped, _OAEP)
        except ValueError:
            newer = older
        if not _KEY_TEXT.fullmatch(newer):
            raise ValueError
        return newer


def variables(name: str, raw: bytes) -> dict[str, str]:
    """The variables of NAME=VALUE lines; empty lines and those that begin with # are none.

    Invalid names the line, never what it holds.
    """
    found: dict[str, str] = {}
    for number, line in enumerate(_text(name, raw).splitlines(), 1):
        if not line.strip() or line.startswith("#"):
            continue
        key, equals, value = line.partition("=")
        if not equals or not _NAME.fullmatch(key) or "\0" in value:
            raise Invalid.field(name, f"line {number} is not NAME=VALUE")
        if len(value.encode()) > MAX_VALUE:
            raise Invalid.field(name, f"line {number} has more than {MAX_VALUE} bytes")
        found[key] = value
    if len(found) > MAX_ITEMS or len(raw) > MAX_TOTAL:
        raise Invalid.field(name, f"at most {MAX_ITEMS} variables and {MAX_TOTAL} bytes")
    return found


def _text(name: str, raw: bytes) -> str:
    try:
        return raw.decode()
    except UnicodeDecodeError:
        raise Invalid.field(name, "must hold UTF-8 text") from None


def _sign_in(repository: str, user: str, password: str) -> dict[str, str]:
    # "" is Docker Hub to the guest.
    return {REGISTRY: repository, USERNAME: user, PASSWORD: password}


def _open_salted(secret: bytes, sealed: bytes) -> bytes:
    """OpenSSL's `enc -aes-256-cbc -md md5`: `Salted__`, 8 bytes of salt, the cipher text."""
    if not sealed.startswith(_SALTED):
        raise ValueError
    salt, ciphertext = sealed[8:16], sealed[16:]
    derived = last = b""
    while len(derived) < 48:  # EVP_BytesToKey, one round
        last = hashlib.md5(last + secret + salt, usedforsecurity=False).digest()
        derived += last
    decryptor = Cipher(algorithms.AES(derived[:32]), modes.CBC(derived[32:48])).decryptor()
    padded = decryptor.update(ciphertext) + decryptor.finalize()
    unpadder = padding.PKCS7(128).unpadder()
    return unpadder.update(padded) + unpadder.finalize()


def _made() -> str:
    pem = rsa.generate_private_key(65537, RSA_BITS).private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    x25519 = X25519PrivateKey.generate().private_bytes_raw()
    return json.dumps({"rsa": pem.decode(), "x25519": x25519.hex()})
