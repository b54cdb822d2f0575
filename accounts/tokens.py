"""Tokens: made of 256 random bits, kept as SHA-256, compared in constant time."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path

PREFIX = "cm_"


def make() -> str:
    """A new token."""
    return PREFIX + secrets.token_urlsafe(32)


def digest(token: str) -> bytes:
    """What is kept of a token; it has too many bits to need a slow hash."""
    return hashlib.sha256(token.encode(errors="surrogateescape")).digest()


def matches(token: str, digests: Iterable[bytes]) -> bool:
    """Whether a token is one of those kept, in a time that tells nothing about them."""
    given = digest(token)
    found = False
    for known in digests:
        found |= hmac.compare_digest(given, known)
    return found


def session_key(data_dir: Path) -> str:
    """The key that signs browser sessions, made once and kept in `session-key`, 0600."""
    return _kept(data_dir / "session-key", make)


def admin_token(data_dir: Path, given: str) -> str:
    """The administrator's token: the given one, else the one kept (made once) in `admin-token`, 0600."""
    return given or _kept(data_dir / "admin-token", make)


def _kept(path: Path, made: Callable[[], str]) -> str:
    try:
        # O_EXCL: of two services that start at once, one makes it.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        return path.read_text().strip()
    value = made()
    with os.fdopen(fd, "w") as file:
        file.write(value + "\n")
    return value
