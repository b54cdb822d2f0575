"""What is an address on the web."""

from __future__ import annotations

from urllib.parse import urlsplit


def is_web_address(url: str) -> bool:
    """Whether a text is an http or https address with a host, and nothing that a log or header could not hold."""
    try:
        parts = urlsplit(url)
        named = bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False
    return (
        named
        and parts.scheme in ("http", "https")
        and url.isascii()
        and url.isprintable()
        and " " not in url
    )
