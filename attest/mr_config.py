"""MRCONFIGID and HOST_DATA: what the host bound to a VM at launch, before any of its code ran.

Source: attestation.md section 4.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import astuple, dataclass

from attest.errors import Malformed, Mismatch
from core.k256 import keccak256

SIZE = 48
KINDS = {"none": 0, "local": 1, "kms": 2, "tpm": 3}

_PREFIX = b"dstack-mr-config-v3:\0"
_HASH_SIZE = 32


@dataclass(frozen=True)
class Identity:
    """Which app a VM runs, and as which instance of it."""

    app_id: bytes = b""
    compose_hash: bytes = b""
    instance_id: bytes = b""


@dataclass(frozen=True)
class MrConfig:
    """A version 3 document as the host wrote it; absent fields are empty."""

    identity: Identity
    key_provider: str = ""
    key_provider_id: bytes = b""


def version_1(compose_hash: bytes) -> bytes:
    """MRCONFIGID (48 bytes) that names the compose hash itself."""
    return (b"\x01" + compose_hash).ljust(SIZE, b"\0")


def version_2(compose_hash: bytes, app_id: bytes, kind: str, key_provider_id: bytes) -> bytes:
    """MRCONFIGID over compose hash, app id and key provider (`kind` of KINDS)."""
    digest = keccak256(compose_hash + app_id + bytes([KINDS[kind]]) + key_provider_id)
    return (b"\x02" + digest).ljust(SIZE, b"\0")


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
        identity=Identity(
            app_id=_hex(given, "app_id"),
            compose_hash=_hex(given, "compose_hash"),
            instance_id=_hex(given, "instance_id"),
        ),
        key_provider=_text(given, "key_provider"),
        key_provider_id=_hex(given, "key_provider_id"),
    )


def check(
    mr_config_id: bytes, identity: Identity, provider: tuple[str, bytes], document: str
) -> None:
    """Refuses (Mismatch) an MRCONFIGID, not zero, that binds another identity than the one measured.

    `provider` is kind (of KINDS) and id; `document` the version 3 text, without which version 3 says nothing.
    """
    kind = mr_config_id[0]
    if kind == 1:
        expected = version_1(identity.compose_hash)
    elif kind == 2 and provider[0] in KINDS:
        expected = version_2(identity.compose_hash, identity.app_id, *provider)
    elif kind == 3:
        expected = version_3(document) if document else mr_config_id
        _check_document(document, identity)
    else:
        raise Mismatch("MRCONFIGID of the quote is of an unknown form")
    if mr_config_id != expected:
        raise Mismatch("MRCONFIGID of the quote binds another app than the one measured")


def _check_document(document: str, identity: Identity) -> None:
    said = parse(document).identity if document else Identity()
    pairs = zip(astuple(said), astuple(identity), strict=True)
    if any(given and given != measured for given, measured in pairs):
        raise Mismatch("the mr_config document names another app than the one measured")


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
