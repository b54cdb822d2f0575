"""Authentication: the configured tokens and the administrator's.

Users, projects and roles join with the tenant surfaces.
"""

from __future__ import annotations

import base64
import binascii
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
        if not any(tokens.matches(token, self.digests) for token in given if token):
            raise Unauthenticated("a valid token is needed: Authorization: Bearer <token>")


def _of_authorization(header: str) -> list[str]:
    scheme, _, value = header.partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return [value]
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            return []
        return [password or user]
    return []
