"""The refusals Casemate makes on purpose; app.py maps each class to a status, each surface to a body.

A service raises one of these and nothing else when it says no.  Anything else that reaches the
surface is a bug: it is logged with a reference and its text is not shown.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class CasemateError(Exception):
    """A refusal with a sentence for the caller and, where it helps, details for the surface."""

    def __init__(self, message: str, **details: object) -> None:
        super().__init__(message)
        self.message = message
        self.details = details


class Invalid(CasemateError):
    """A value breaks its rule; `fields` names each bad field with its reasons."""

    def __init__(self, message: str, fields: Mapping[str, Sequence[str]] | None = None) -> None:
        super().__init__(message)
        self.fields = dict(fields or {})

    @classmethod
    def field(cls, name: str, reason: str) -> Invalid:
        """One bad field: the message is `name: reason`."""
        return cls(f"{name}: {reason}", {name: [reason]})


class Unauthenticated(CasemateError):
    """No credential, or a wrong one."""


class PaymentRequired(CasemateError):
    """The caller's balance does not cover the call."""


class Forbidden(CasemateError):
    """A known caller who may not do this."""


class NotFound(CasemateError):
    """There is no such thing for this caller."""


class WrongMethod(CasemateError):
    """The path exists, the HTTP method does not."""


class Conflict(CasemateError):
    """A name, port or state stands in the way."""


class TooLarge(CasemateError):
    """A body, file or log request is over its limit."""


class RateLimited(CasemateError):
    """Too many calls; `retry_after_s` says when to come back."""

    def __init__(self, message: str, retry_after_s: int) -> None:
        super().__init__(message)
        self.retry_after_s = retry_after_s


class Upstream(CasemateError):
    """A guest, KMS, chain or outside host failed or refused."""


class UpstreamTimeout(CasemateError):
    """A guest, KMS, chain or outside host did not answer in time."""


class Unsupported(CasemateError):
    """A documented call that this installation does not offer."""


class Unavailable(CasemateError):
    """No room, a full disk, or the service is going down; trying later may work."""


# Class -> HTTP status, for every surface.  A surface may override single entries.
STATUS: dict[type[CasemateError], int] = {
    Invalid: 400,
    Unauthenticated: 401,
    PaymentRequired: 402,
    Forbidden: 403,
    NotFound: 404,
    WrongMethod: 405,
    Conflict: 409,
    TooLarge: 413,
    RateLimited: 429,
    Upstream: 502,
    UpstreamTimeout: 504,
    Unsupported: 501,
    Unavailable: 503,
}


def status_of(error: CasemateError) -> int:
    """The HTTP status of a refusal, by the nearest class in the table."""
    for cls in type(error).__mro__:
        if cls in STATUS:
            return STATUS[cls]
    raise TypeError(f"{type(error).__name__} has no HTTP status")
