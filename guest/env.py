"""The app's encrypted environment: opened with the app's key, cut down to what the app allows.

Source: kms.md section 7 (layout), guest-agent.md section 10 (limits).
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
from collections.abc import Collection, Mapping

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from core.errors import Invalid

MAX_ITEMS = 1024
MAX_TOTAL = 1024 * 1024
MAX_VALUE = 128 * 1024
# Who knows it and not only the app id may give this app an environment (kms.md section 7).
LAUNCH_TOKEN = "APP_LAUNCH_TOKEN"
_KEY_SIZE, _NONCE_SIZE, _TAG_SIZE = 32, 12, 16
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)


def decrypt(key: bytes, sealed: bytes) -> bytes:
    """The plaintext of `.encrypted-env` under the app's 32-byte X25519 key; Invalid when it does not open."""
    if len(sealed) < _KEY_SIZE + _NONCE_SIZE + _TAG_SIZE:
        raise Invalid("the encrypted environment is too short")
    public = X25519PublicKey.from_public_bytes(sealed[:_KEY_SIZE])
    nonce, ciphertext = sealed[_KEY_SIZE:][:_NONCE_SIZE], sealed[_KEY_SIZE + _NONCE_SIZE :]
    try:
        shared = X25519PrivateKey.from_private_bytes(key).exchange(public)
    except ValueError:
        # cryptography refuses the all-zero shared secret of a low-order point.
        raise Invalid("the encrypted environment has an unusable public key") from None
    try:
        return AESGCM(shared).decrypt(nonce, ciphertext, None)
    except InvalidTag:
        raise Invalid("the encrypted environment does not open with this app's key") from None


def variables(plaintext: bytes, allowed: Collection[str]) -> dict[str, str]:
    """The variables of `{"env": [{"key", "value"}]}` whose names the app allows, in order.

    Raises Invalid when the document, a name or a size breaks its rule; names that are not allowed are
    dropped before their values are looked at.
    """
    try:
        items = json.loads(plaintext)["env"]
    except (ValueError, KeyError, TypeError, RecursionError):
        raise Invalid("the environment must be a JSON object with a list env") from None
    if not isinstance(items, list) or len(items) > MAX_ITEMS:
        raise Invalid(f"the environment must be a list of at most {MAX_ITEMS} items")
    kept = dict(_item(item) for item in items if _name(item) in allowed)
    if sum(len(name) + len(value.encode()) for name, value in kept.items()) > MAX_TOTAL:
        raise Invalid(f"the environment exceeds {MAX_TOTAL} bytes")
    return kept


def _name(item: object) -> str:
    name = item.get("key") if isinstance(item, Mapping) else None
    if not isinstance(name, str):
        raise Invalid("each environment item must have a key")
    return name


def _item(item: Mapping[str, object]) -> tuple[str, str]:
    name, value = _name(item), item.get("value")
    if not _NAME.fullmatch(name):
        raise Invalid(f"{name[:64]!r} is not the name of an environment variable")
    if not isinstance(value, str) or "\0" in value:
        raise Invalid(f"the value of {name} must be a string without NUL")
    try:
        size = len(value.encode())
    except UnicodeEncodeError:
        raise Invalid(f"the value of {name} must be valid Unicode") from None
    if size > MAX_VALUE:
        raise Invalid(f"the value of {name} exceeds {MAX_VALUE} bytes")
    return name, value


def check_launch_token(values: Mapping[str, str], wanted: str) -> None:
    """Refuses (Invalid) an environment without the token whose SHA-256 in hex the app-compose names.

    Anybody can encrypt for an app whose id he knows; the token shows that its owner did.
    """
    if not wanted:
        return
    if LAUNCH_TOKEN not in values:
        raise Invalid(
            f"the app-compose names a launch_token_hash, but no {LAUNCH_TOKEN} came with the encrypted "
            "environment; it must be among allowed_envs too"
        )
    found = hashlib.sha256(values[LAUNCH_TOKEN].encode()).hexdigest()
    if not hmac.compare_digest(found.encode(), wanted.removeprefix("0x").lower().encode()):
        raise Invalid(f"{LAUNCH_TOKEN} is not the one whose hash the app-compose names")


def to_shell(values: Mapping[str, str]) -> str:
    """The variables as `NAME='value'` lines, the text of `.decrypted-env`."""
    quoted = ((name, value.replace("'", "'\\''")) for name, value in values.items())
    return "".join(f"{name}='{value}'\n" for name, value in quoted)
