"""Callers who sign each request with an Ethereum key instead of showing a token (secretvm.md section 1).

payload = METHOD + path + body + timestamp; what is signed is EIP-191's personal message over the 32 bytes of its
SHA-256.  A request is let in once.
"""

from __future__ import annotations

import hashlib
import re
import time
from dataclasses import dataclass, field

from sqlalchemy import delete, select
from sqlalchemy.exc import IntegrityError

from accounts import directory
from accounts.roles import Caller, GlobalRole
from core import k256
from core.errors import Conflict, Unauthenticated
from models.account import User
from models.base import Database
from models.secretvm import SeenSignature

TOLERANCE_MS = 5 * 60_000
# Long enough that nothing is forgotten which its timestamp would still let in.
REMEMBERED_MS = 3 * TOLERANCE_MS

_PREFIX = b"\x19Ethereum Signed Message:\n32"
_ADDRESS = re.compile(r"0x[0-9a-fA-F]{40}")
_SIGNATURE = re.compile(r"(?:0x)?([0-9a-fA-F]{130})")
_TIMESTAMP = re.compile(r"\d{9,14}", re.ASCII)


@dataclass(frozen=True)
class Signature:
    """The texts of the three headers."""

    address: str
    signature: str = field(repr=False)
    timestamp: str

    def digest_of(self, method: str, path: str, body: str) -> bytes:
        """The hash that a request's signature is over (32 bytes)."""
        payload = f"{method.upper()}{path}{body}{self.timestamp}"
        return hashlib.sha256(payload.encode(errors="surrogatepass")).digest()


def caller_of(database: Database, shown: Signature, digest: bytes) -> Caller:
    """The caller whose signature over a request's hash this is; Unauthenticated says what is wrong with it.

    Who comes for the first time becomes a user with a project, both named by the address.
    """
    _check_time(shown.timestamp)
    address = shown.address.lower()
    if not _ADDRESS.fullmatch(shown.address) or _signer(shown.signature, digest) != address:
        raise Unauthenticated("x-agent-signature is not of x-agent-address over this request")
    _note(database, digest)
    user = _user(database, address)
    if not user.active:
        raise Unauthenticated(f"the agent {address} may not call")
    is_operator = user.role == GlobalRole.ADMIN
    return Caller(user.id, user.name, is_operator, None, hashlib.sha256(address.encode()).digest())


def address_of(public_key: bytes) -> str:
    """The address of an uncompressed public key (65 bytes), in lower case."""
    return "0x" + k256.keccak256(public_key[1:])[-20:].hex()


def message_of(digest: bytes) -> bytes:
    """What is hashed with Keccak-256 and signed for the hash of a request."""
    return _PREFIX + digest


def _check_time(timestamp: str) -> None:
    if not _TIMESTAMP.fullmatch(timestamp):
        raise Unauthenticated("x-agent-timestamp must be Unix time in milliseconds")
    # Ten digits are seconds until the year 2286.
    then_ms = int(timestamp) * (1000 if len(timestamp) <= 10 else 1)
    if abs(_now_ms() - then_ms) > TOLERANCE_MS:
        raise Unauthenticated("x-agent-timestamp is more than 5 minutes off")


def _signer(signature: str, digest: bytes) -> str:
    given = _SIGNATURE.fullmatch(signature)
    if not given:
        return ""
    raw = bytes.fromhex(given[1])
    recovery = raw[64] - 27 if raw[64] >= 27 else raw[64]
    try:
        public_key = k256.recover(raw[:64] + bytes([recovery]), message_of(digest))
        return address_of(k256.uncompressed(public_key))
    except ValueError:
        return ""


def _note(database: Database, digest: bytes) -> None:
    now = _now_ms()
    try:
        with database.writing() as session:
            old = SeenSignature.seen_ms < now - REMEMBERED_MS
            session.execute(delete(SeenSignature).where(old))
            session.add(SeenSignature(digest=digest, seen_ms=now))
    except IntegrityError:
        raise Unauthenticated("this signed request was made already; sign it anew") from None


def _user(database: Database, address: str) -> User:
    with database.writing() as session:
        known = session.scalar(select(User).where(User.name == address))
        if known is not None:
            return known
        try:
            return directory.add_user(session, address)
        except Conflict:
            raise Unauthenticated(f"the name {address} is another's project here") from None


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
