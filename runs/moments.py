"""Times as the interface writes them: ISO 8601 in UTC with microseconds, `2026-01-02T03:04:05.678901Z`."""

from __future__ import annotations

import time
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_ONE = timedelta(microseconds=1)


def now_us() -> int:
    """Microseconds since 1970."""
    return time.time_ns() // 1000


def written(moment_us: int) -> str:
    """A time in microseconds since 1970 as text."""
    whole, part = divmod(moment_us, 1_000_000)
    return time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(whole)) + f".{part:06d}Z"


def maybe(moment_us: int | None) -> str | None:
    """The same where there is a time."""
    return None if moment_us is None else written(moment_us)


def of_ms(moment_ms: int) -> str:
    """A time in milliseconds as text."""
    return written(moment_ms * 1000)


def microseconds(text: str) -> int | None:
    """The microseconds since 1970 that a text means, a time without zone being UTC; None when it is no time."""
    try:
        found = datetime.fromisoformat(text.strip())
        found = found if found.tzinfo else found.replace(tzinfo=UTC)
        return (found - _EPOCH) // _ONE
    except (ValueError, OverflowError):
        return None
