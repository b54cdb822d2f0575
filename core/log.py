"""Structured logging of the service to standard error, with secrets taken out in one place."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import MutableMapping
from typing import Any

import structlog

# Values of these names never reach a log, whoever logs them.
_NAMES = (
    "token|password|passwd|secret|authorization|cookie|api[_-]?key|private|seed"
    "|encrypted_env|user_config"
)
SECRET_NAMES = re.compile(_NAMES, re.IGNORECASE)
_IN_TEXT = re.compile(
    # NAME=value, NAME: value, "NAME": ["value", 'NAME', 'value', Bearer value
    rf"""(?i)((?:{_NAMES})[\w-]*(?:["']?\s*[=:]\s*\[?|["']\s*,\s*(?=["']))(?:(?:Bearer|Basic)\s+)?"""
    r"""|\b(?:Bearer|Basic)\s+)(?:"[^"]*"?|'[^']*'?|[^\s&"',}\]]+)"""
)
REDACTED = "[redacted]"


def redact(text: str) -> str:
    """A line of text without the values of `token=`, `password:`, `Bearer ...` and their like."""
    return _IN_TEXT.sub(lambda found: found[1] + REDACTED, text)


def _redact_event(
    logger: Any, method: str, event: MutableMapping[str, Any]
) -> MutableMapping[str, Any]:
    for key, value in event.items():
        if SECRET_NAMES.search(key):
            event[key] = REDACTED
        elif isinstance(value, str):
            event[key] = redact(value)
    return event


def setup(level: int = logging.INFO) -> None:
    """Sends every logger's records to standard error: key=value on a terminal, JSON lines elsewhere."""
    on_terminal = sys.stderr.isatty()
    shared: list[Any] = [
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.PositionalArgumentsFormatter(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
        _redact_event,
    ]
    last = (
        structlog.dev.ConsoleRenderer(colors=True)
        if on_terminal
        else structlog.processors.JSONRenderer()
    )
    formatter = structlog.stdlib.ProcessorFormatter(
        foreign_pre_chain=shared,
        processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, last],
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(formatter)
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(level)
    # Two lines of context at every start say nothing to an operator.
    logging.getLogger("alembic").setLevel(logging.WARNING)
    # It logs what it also raises.
    logging.getLogger("qemu.qmp").setLevel(logging.CRITICAL)
