"""An htpasswd file: names with bcrypt hashes, read again when it changes."""

from __future__ import annotations

import hmac
import logging
import re
import secrets
from dataclasses import dataclass, field
from pathlib import Path
from threading import Lock

import bcrypt

from accounts import tokens
from core.errors import RateLimited

logger = logging.getLogger(__name__)

_BCRYPT = re.compile(r"\$2[by]\$(0[4-9]|[12]\d|3[01])\$[./A-Za-z0-9]{53}")
# bcrypt looks at no more; cutting in silence would let two long passwords be one.
MAX_PASSWORD = 72
# A hash takes a third of a second of one core: wrong passwords wait for each other, and not for ever.
WAIT_S = 1.0
_REMEMBERED = 1000
# Checked for names that are not in the file, so that the time does not tell which are: of random bytes.
_NOBODY = "$2b$12$FhQ/8A8rX/i5WmcWCp1Sp.V6fbjmPshemc13bab5Di90Yh/xOWBiS"

Stamp = tuple[int, int, int]


@dataclass
class Htpasswd:
    """The entries of one file, and which passwords were found right since it was read."""

    path: Path
    _entries: dict[str, str] = field(default_factory=dict, repr=False)
    _stamp: Stamp | None = (0, 0, 0)
    _right: set[bytes] = field(default_factory=set, repr=False)
    _secret: bytes = field(default_factory=lambda: secrets.token_bytes(32), repr=False)
    _reading: Lock = field(default_factory=Lock, repr=False)
    _hashing: Lock = field(default_factory=Lock, repr=False)

    def check(self, user: str, password: str) -> bytes | None:
        """The digest of a user's entry when the password is right; RateLimited while others are checked.

        A right password is remembered in memory under a key of this process, since bcrypt is slow by
        intent and every request carries the password.
        """
        raw = password.encode(errors="surrogateescape")
        if len(raw) > MAX_PASSWORD or b"\0" in raw:
            return None
        entry = self._current().get(user)
        digest = _digest(user, entry or _NOBODY)
        remembered = hmac.digest(self._secret, digest + raw, "sha256")
        if remembered not in self._right:
            if not self._matches(raw, entry or _NOBODY) or entry is None:
                return None
            if len(self._right) >= _REMEMBERED:
                self._right.clear()
            self._right.add(remembered)
        return digest

    def named(self, digest: bytes) -> str | None:
        """The user whose entry, as it is now, has this digest."""
        found = None
        for user, entry in self._current().items():
            if tokens.is_among(digest, (_digest(user, entry),)):
                found = user
        return found

    def _matches(self, password: bytes, entry: str) -> bool:
        if not self._hashing.acquire(timeout=WAIT_S):
            raise RateLimited("too many passwords are being checked; try again", retry_after_s=1)
        try:
            return bcrypt.checkpw(password, entry.encode())
        finally:
            self._hashing.release()

    def _current(self) -> dict[str, str]:
        with self._reading:
            stamp = _stamp(self.path)
            if stamp != self._stamp:
                self._entries = _read(self.path)
                self._stamp = stamp
                self._right.clear()
            return self._entries


def _stamp(path: Path) -> Stamp | None:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino


def _read(path: Path) -> dict[str, str]:
    try:
        lines = path.read_text(errors="replace").splitlines()
    except OSError as error:
        # Tokens still let their owners in.
        logger.warning("the htpasswd file lets nobody in: %s", error)
        return {}
    entries = {}
    for number, line in enumerate(lines, 1):
        user, _, entry = line.strip().partition(":")
        if not user or user.startswith("#"):
            continue
        if _BCRYPT.fullmatch(entry):
            entries[user] = entry
        else:
            # Not the line itself: it is a secret of a weaker kind.
            logger.warning("%s line %d is not bcrypt ($2y$ or $2b$), ignored", path, number)
    return entries


def _digest(user: str, entry: str) -> bytes:
    return tokens.digest(f"{user}:{entry}")
