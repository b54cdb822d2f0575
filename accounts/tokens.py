"""Tokens: made of 256 random bits, kept as SHA-256, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from pathlib import Path

from core.files import write_once

PREFIX = "cm_"


def make() -> str:
    """A new token."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(token: str) -> bytes:
    """What is kept of a token; it has too many bits to need a slow hash."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def is_among(given: bytes, digests: Iterable[bytes]) -> bool:
    """Whether a digest is one of those kept, in a time that tells nothing about them."""
    found = False
    for known in digests:
        found |= hmac.compare_digest(given, known)
    return found


def session_key(data_dir: Path) -> str:
    """The key that signs browser sessions, made once and kept in `session-key`, 0600."""
    return _kept(data_dir / "session-key")


def admin_token(data_dir: Path, given: str) -> str:
    """The administrator's token: the given one, else the one kept (made once) in `admin-token`, 0600."""
    return given or _kept(data_dir / "admin-token")


def _kept(path: Path) -> str:
    return write_once(path, make() + "\n").decode().strip()
