"""The checks of a host that is asked right now, and how its pages are read: nothing in them may do harm."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from typing import Any

from core.errors import Upstream
from core.outbound import Link


@dataclass
class Checks:
    """The outcome of one check after the other; None where it could not be made."""

    names: tuple[str, ...]
    errors: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.found: dict[str, bool | None] = dict.fromkeys(self.names)

    def note(self, name: str, holds: bool, why: str = "") -> bool:
        """Keeps an outcome, and why it is bad."""
        self.found[name] = holds
        if not holds and why:
            self.errors.append(why)
        return holds


def optional(link: Link, path: str) -> bytes | None:
    """The body of a page that is there, None when it is not or the connection has ended."""
    try:
        answer = link.get(path)
    except Upstream:
        return None
    return answer.body if answer.status == 200 else None


def quote_text(given: object) -> str:
    """The quote in a text, or in an object or its JSON that has one."""
    if isinstance(given, str) and given.lstrip().startswith("{"):
        given = json_object(given.encode())
    if isinstance(given, dict):
        given = given.get("quote")
    return given.strip() if isinstance(given, str) else ""


def json_value(raw: bytes) -> object:
    """What a stranger's JSON says, None when it is none."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def json_object(raw: bytes) -> dict[str, Any]:
    """The object that a stranger's JSON is, an empty one when it is none."""
    given = json_value(raw)
    return given if isinstance(given, dict) else {}
