"""MRCONFIGID and HOST_DATA: what the host bound to a VM at launch, before any of its code ran.

Source: attestation.md section 4.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass

from Crypto.Hash import keccak

from attest.errors import Malformed

SIZE = 48
KINDS = {"none": 0, "local": 1, "kms": 2, "tpm": 3}

_PREFIX = b"dstack-mr-config-v3:\0"
_HASH_SIZE = 32


@dataclass(frozen=True)
class MrConfig:
    """A version 3 document as the host wrote it; absent fields are empty."""

    app_id: bytes = b""
    compose_hash: bytes = b""
    instance_id: bytes = b""
    key_provider: str = ""
    key_provider_id: bytes = b""


def version_1(compose_hash: bytes) -> bytes:
    """MRCONFIGID (48 bytes) that names the compose hash itself."""
    return (b"\x01" + compose_hash).ljust(SIZE, b"\0")


def version_2(compose_hash: bytes, app_id: bytes, kind: str, key_provider_id: bytes) -> bytes:
    """MRCONFIGID over compose hash, app id and key provider (`kind` of KINDS)."""
    digest = keccak.new(digest_bits=256)
    digest.update(compose_hash + app_id + bytes([KINDS[kind]]) + key_provider_id)
    return (b"\x02" + digest.digest()).ljust(SIZE, b"\0")


def host_data(document: str) -> bytes:
    """The hash (32 bytes) of a version 3 document, taken of its bytes as received."""
    return hashlib.sha256(_PREFIX + document.encode(errors="surrogatepass")).digest()


def version_3(document: str) -> bytes:
    """MRCONFIGID over a version 3 document."""
    return (b"\x03" + host_data(document)).ljust(SIZE, b"\0")


def parse(document: str) -> MrConfig:
    """Reads a version 3 document; Malformed when it is none."""
    try:
        given = json.loads(document)
    except (ValueError, RecursionError):
        given = None
    if not isinstance(given, dict) or given.get("version") != 3:
        raise Malformed("mr_config: not a version 3 document")
    return MrConfig(
        app_id=_hex(given, "app_id"),
        compose_hash=_hex(given, "compose_hash"),
        instance_id=_hex(given, "instance_id"),
        key_provider=_text(given, "key_provider"),
        key_provider_id=_hex(given, "key_provider_id"),
    )


def _text(given: dict[str, object], key: str) -> str:
    value = given.get(key, "")
    if not isinstance(value, str):
        raise Malformed(f"mr_config: {key} must be a string")
    return value


def _hex(given: dict[str, object], key: str) -> bytes:
    try:
        return bytes.fromhex(_text(given, key))
    except ValueError:
        raise Malformed(f"mr_config: {key} must be hex text") from None
