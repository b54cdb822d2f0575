"""SSH keys of users: the pair the service makes for each, its private half encrypted at rest, and public keys of their own."""

from __future__ import annotations

import base64
import binascii
import hashlib
import secrets
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import InvalidTag, UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from core.errors import Conflict, Invalid, NotFound, Unavailable
from core.files import write_once
from models.account import SshKey, User

# The name of the pair that the service made; users' own keys have names of theirs.
BUILT_IN = "built-in"
MAX_KEYS = 100
_NONCE = 12
_KINDS = {
    "ssh-ed25519", "ssh-rsa", "ecdsa-sha2-nistp256", "ecdsa-sha2-nistp384", "ecdsa-sha2-nistp521",
    "sk-ssh-ed25519@openssh.com", "sk-ecdsa-sha2-nistp256@openssh.com",
}  # fmt: skip


@dataclass(frozen=True)
class Safe:
    """What encrypts private keys and secrets of runs at rest: AES-GCM with a key of the data directory, bound to where
    the value belongs."""

    key: bytes

    @classmethod
    def of(cls, data_dir: Path) -> Safe:
        """The safe of a data directory; its key is made once, in `ssh-keys-key`, 0600."""
        kept = write_once(data_dir / "ssh-keys-key", secrets.token_hex(32) + "\n")
        return cls(bytes.fromhex(kept.decode().strip()))

    def seal(self, place: str, secret: bytes) -> bytes:
        """What may stand in the database."""
        nonce = secrets.token_bytes(_NONCE)
        return nonce + AESGCM(self.key).encrypt(nonce, secret, place.encode())

    def open(self, place: str, sealed: bytes) -> bytes:
        """What was sealed; Unavailable when the key is not the one that sealed it."""
        try:
            return AESGCM(self.key).decrypt(sealed[:_NONCE], sealed[_NONCE:], place.encode())
        except InvalidTag:
            raise Unavailable(
                "this was sealed with another key: restore ssh-keys-key of the data directory"
            ) from None


def built_in(session: Session, user: User) -> SshKey | None:
    """The pair that the service made for a user."""
    return session.scalar(
        select(SshKey).where(SshKey.user_id == user.id, SshKey.private_key.is_not(None))
    )


def make_pair(session: Session, user: User, safe: Safe) -> SshKey:
    """Makes a user's pair, instead of the one there was."""
    session.execute(
        delete(SshKey).where(SshKey.user_id == user.id, SshKey.private_key.is_not(None))
    )
    pair, row_id = Ed25519PrivateKey.generate(), str(uuid.uuid4())
    private = pair.private_bytes(
        serialization.Encoding.PEM,
        # The one form of this kind of key that ssh itself reads.
        serialization.PrivateFormat.OpenSSH,
        serialization.NoEncryption(),
    )
    public = pair.public_key().public_bytes(
        serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH
    )
    row = SshKey(
        id=row_id,
        user_id=user.id,
        name=BUILT_IN,
        # With the line end: clients compare the texts.
        public_key=f"{public.decode()} {user.name}\n",
        private_key=safe.seal(row_id, private),
        created_ms=time.time_ns() // 1_000_000,
    )
    session.add(row)
    session.flush()
    return row


def private_half(row: SshKey, safe: Safe) -> str:
    """The private key of a pair that the service made, as a file of OpenSSH."""
    assert row.private_key is not None
    return safe.open(row.id, row.private_key).decode()


def own_keys(session: Session, user: User) -> Sequence[SshKey]:
    """The public keys that a user added, the oldest first."""
    asked = select(SshKey).where(SshKey.user_id == user.id, SshKey.private_key.is_(None))
    return session.scalars(asked.order_by(SshKey.created_ms, SshKey.id)).all()


def add_key(session: Session, user: User, text: str, name: str | None) -> SshKey:
    """Adds a public key of a user; Invalid when it is none, Conflict when they have it already."""
    kind, blob, comment = parse(text)
    line = f"{kind} {blob}"
    own = own_keys(session, user)
    if any(line == " ".join(key.public_key.split()[:2]) for key in own):
        raise Conflict("this key is there already", code="resource_exists")
    if len(own) >= MAX_KEYS:
        raise Conflict(f"a user has at most {MAX_KEYS} keys; remove one first", code="error")
    row = SshKey(
        id=str(uuid.uuid4()),
        user_id=user.id,
        name=(name or comment or f"{kind} key")[:100],
        public_key=" ".join(filter(None, (line, comment))),
        created_ms=time.time_ns() // 1_000_000,
    )
    session.add(row)
    session.flush()
    return row


def remove_keys(session: Session, user: User, ids: Sequence[str]) -> None:
    """Removes public keys of a user; NotFound when one is not theirs, and then none is removed."""
    rows = {row.id: row for row in own_keys(session, user)}
    if missing := set(ids) - rows.keys():
        raise NotFound(f"key {min(missing)} not found", code="resource_not_exists")
    for row_id in set(ids):
        session.delete(rows[row_id])


def parse(text: str) -> tuple[str, str, str]:
    """Kind, Base64 and comment of a public key as OpenSSH writes it in one line; Invalid when it is none."""
    kind, _, rest = text.strip().partition(" ")
    blob, _, comment = rest.strip().partition(" ")
    is_one_line = "\n" not in text.strip() and text.strip().isprintable()
    if kind not in _KINDS or not is_one_line:
        raise Invalid.field("key", "must be one line like `ssh-ed25519 AAAA... comment`")
    try:
        base64.b64decode(blob, validate=True)
        serialization.load_ssh_public_key(f"{kind} {blob}".encode())
    except (binascii.Error, ValueError):
        raise Invalid.field("key", "is no public key of OpenSSH") from None
    except UnsupportedAlgorithm:  # of a security token: its form is right, and sshd judges the rest
        pass
    return kind, blob, comment.strip()


def fingerprint(public_key: str) -> str:
    """SHA256:... of a public key, as ssh-keygen prints it."""
    raw = base64.b64decode(public_key.split()[1])
    return "SHA256:" + base64.b64encode(hashlib.sha256(raw).digest()).decode().rstrip("=")
