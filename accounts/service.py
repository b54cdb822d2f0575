"""Authentication: the configured tokens and the administrator's.

Users, projects and roles join with the tenant surfaces.
"""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass

from accounts import tokens
from core.config import Config
from core.errors import Unauthenticated


@dataclass(frozen=True)
class Accounts:
    """Who may call; holds digests, never tokens."""

    enabled: bool
    digests: tuple[bytes, ...]

    @classmethod
    def of(cls, config: Config) -> Accounts:
        """The accounts of a configuration; makes the administrator's token when there is none."""
        admin = tokens.admin_token(config.data_dir, config.admin_token)
        return cls(
            enabled=config.auth.enabled,
            digests=tuple(tokens.digest(token) for token in (*config.auth.tokens, admin)),
        )

    def authenticate(self, authorization: str, admin_token: str) -> None:
        """Raises Unauthenticated unless authentication is off or a valid token is given.

        `authorization` and `admin_token` are the texts of the headers Authorization and X-Admin-Token,
        empty when absent.  Taken: Bearer, and Basic with the token as password, or as user with an
        empty password (vmm.md section 12).
        """
        if not self.enabled:
            return
        given = [*_of_authorization(authorization), admin_token]
        if not any(self.knows(token) for token in given):
            raise Unauthenticated("a valid token is needed: Authorization: Bearer <token>")

    def knows(self, token: str) -> bool:
        """Whether a token is valid."""
        return bool(token) and tokens.matches(token, self.digests)

    def session_of(self, token: str) -> str:
        """What a signed-in browser keeps instead of the token; Unauthenticated when that is wrong."""
        if not self.knows(token):
            raise Unauthenticated("this is not a valid token")
        return tokens.digest(token).hex()

    def allows_session(self, session: str) -> bool:
        """Whether a browser's session still stands for a valid token."""
        return not self.enabled or any(
            hmac.compare_digest(session, known.hex()) for known in self.digests
        )


def _of_authorization(header: str) -> list[str]:
    scheme, _, value = header.partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return [value]
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except ValueError:  # not base64, or not text inside
            return []
        return [password or user]
    return []
