"""What a request shows of its caller, read from the texts of its headers."""

from __future__ import annotations

import base64
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Credentials:
    """Tokens to try, in order, and the user and password of HTTP Basic."""

    tokens: tuple[str, ...] = field(default=(), repr=False)
    login: tuple[str, str] | None = field(default=None, repr=False)

    @classmethod
    def of(cls, authorization: str, *tokens: str) -> Credentials:
        """Of the text of the header Authorization and of tokens from elsewhere; empty ones are none.

        Bearer carries a token.  Basic carries one as password, or as user with an empty password, or
        the user and password of an htpasswd file (vmm.md section 12).
        """
        shown = _of_authorization(authorization)
        given = (*shown.tokens, *tokens)
        return cls(tuple(token for token in given if token), shown.login)


def _of_authorization(header: str) -> Credentials:
    scheme, _, value = header.partition(" ")
    value = value.strip()
    if scheme.lower() == "bearer":
        return Credentials((value,))
    if scheme.lower() == "basic":
        try:
            user, _, password = base64.b64decode(value, validate=True).decode().partition(":")
        except ValueError:  # not base64, or not text inside
            return Credentials()
        return Credentials((password or user,), (user, password) if user and password else None)
    return Credentials()
