"""Who is calling, and what they may touch: asked of the database each time, so that nothing outlives its end."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.exc import OperationalError

from accounts import tokens
from accounts.credentials import Credentials
from accounts.htpasswd import Htpasswd
from accounts.roles import OPERATOR, Caller, GlobalRole, ProjectRole
from core.config import Config
from core.errors import Forbidden, Unauthenticated
from models.account import Member, Token, User
from models.base import Database

logger = logging.getLogger(__name__)

# When a token was used last is kept to the hour: a read must not cost a write each time.
USED_TO_MS = 3_600_000

_TOKENS, _USERS = Token.__table__, User.__table__
# Each call asks this: built once, and its plain row costs a fifth of what an object of a session does.
_KNOWN = (
    select(*_TOKENS.c, _USERS.c.name.label("user_name"), _USERS.c.role, _USERS.c.active)
    .join_from(_TOKENS, _USERS, _TOKENS.c.user_id == _USERS.c.id)
    .where(_TOKENS.c.digest == bindparam("digest"))
)


@dataclass(frozen=True)
class Accounts:
    """The users of one data directory; holds digests, never tokens."""

    enabled: bool  # [auth] enabled, which guards the VMM's own interface alone
    digests: tuple[bytes, ...]
    htpasswd: Htpasswd | None
    database: Database

    @classmethod
    def of(cls, config: Config, database: Database) -> Accounts:
        """The accounts of a configuration; makes the administrator's token when there is none."""
        admin = tokens.admin_token(config.data_dir, config.admin_token)
        file = config.auth.htpasswd_file
        return cls(
            enabled=config.auth.enabled,
            digests=tuple(tokens.digest(each) for each in (*config.auth.tokens, admin) if each),
            htpasswd=Htpasswd(file) if file.name else None,
            database=database,
        )

    def authenticate(self, given: Credentials) -> Caller:
        """The caller whom one of the credentials stands for; Unauthenticated when none does."""
        for token in given.tokens:
            if caller := self._find(tokens.digest(token)):
                return caller
        if self.htpasswd and given.login and (entry := self.htpasswd.check(*given.login)):
            return replace(OPERATOR, name=given.login[0], digest=entry)
        raise Unauthenticated("a valid token is needed: Authorization: Bearer <token>")

    def still_valid(self, caller: Caller) -> bool:
        """Whether a caller's credential stands for the same account with the same rights as before."""
        if not caller.digest:  # none was needed
            return not self.enabled
        return self._find(caller.digest) == caller

    def session_of(self, token: str, user: str = "") -> str:
        """What a signed-in browser keeps instead of the token, or of the password of a `user`; Unauthenticated when it is wrong."""
        try:
            caller = self.authenticate(
                Credentials((token,) if token else (), (user, token) if user and token else None)
            )
        except Unauthenticated:
            raise Unauthenticated("this is not a valid token") from None
        return caller.digest.hex()

    def caller_of(self, session: str) -> Caller | None:
        """Whom a browser's session stands for, as long as the credential is valid.

        Whoever has not signed in where no authentication is asked for is an operator without a credential.
        """
        caller = self._find(bytes.fromhex(session)) if session else None
        return caller or (None if self.enabled else OPERATOR)

    def roles(self, caller: Caller) -> dict[str, ProjectRole]:
        """The caller's role in each of their projects, the first project first."""
        asked = select(Member.project_id, Member.role).where(Member.user_id == caller.user_id)
        with self.database.reading() as session:
            return {
                project_id: ProjectRole(role)
                for project_id, role in session.execute(asked.order_by(Member.id))
            }

    def home(self, caller: Caller) -> str:
        """The project that a caller's new things belong to; Forbidden when they are in none."""
        roles = self.roles(caller)
        if caller.project_id in roles:
            return str(caller.project_id)
        for project_id in roles:
            return project_id
        raise Forbidden(f"{caller.name} is a member of no project")

    def may_see(self, caller: Caller, project_id: str | None) -> bool:
        """Whether a caller may see what belongs to a project; None is no project at all."""
        return caller.is_operator or project_id in self.roles(caller)

    def while_allowed(
        self, caller: Caller, project_id: str | None, pieces: Iterator[str]
    ) -> Iterator[str]:
        """A long stream that ends instead of giving a piece which its caller may not see any more."""
        for piece in pieces:
            if not (self.still_valid(caller) and self.may_see(caller, project_id)):
                return
            yield piece

    def _find(self, digest: bytes) -> Caller | None:
        if tokens.is_among(digest, self.digests):
            return replace(OPERATOR, digest=digest)
        if self.htpasswd and (name := self.htpasswd.named(digest)):
            return replace(OPERATOR, name=name, digest=digest)
        with self.database.reading() as session:
            token = session.execute(_KNOWN, {"digest": digest}).one_or_none()
        if token is None or not tokens.is_among(digest, (token.digest,)) or not _is_good(token):
            return None
        self._note_use(token)
        is_admin = token.role == GlobalRole.ADMIN
        return Caller(token.user_id, token.user_name, is_admin, token.project_id, digest)

    def _note_use(self, token: Any) -> None:
        now = _now_ms()
        if token.used_ms is not None and now - token.used_ms < USED_TO_MS:
            return
        try:
            with self.database.writing() as session:
                session.execute(update(Token).where(Token.id == token.id).values(used_ms=now))
        except OperationalError as error:
            # A full disk must not keep people from reading.
            logger.warning("the use of a token was not noted: %s", error.orig)


def _is_good(token: Any) -> bool:
    has_expired = token.expires_ms is not None and token.expires_ms <= _now_ms()
    return token.active and token.revoked_ms is None and not has_expired


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
