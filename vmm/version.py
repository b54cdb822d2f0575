"""What this service calls itself."""

from __future__ import annotations

import functools
import importlib.metadata
from pathlib import Path

from core.proc import CommandFailed, run

VERSION = importlib.metadata.version("casemate")


@functools.cache
def revision() -> str:
    """`git:<sha>` of the checkout the service runs from, `git:unknown` without one."""
    checkout = Path(__file__).resolve().parent.parent
    try:
        done = run(["git", "-C", checkout, "rev-parse", "HEAD"], timeout_s=5)
        return f"git:{done.stdout.decode().strip()}"
    except CommandFailed:
        return "git:unknown"
