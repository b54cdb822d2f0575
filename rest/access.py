"""Which calls of the REST surfaces anybody may make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rest.blueprint import Blueprint


def public(view: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a view that needs no credential and looks at none; goes below the blueprint's decorators."""
    marked: Callable[..., Any] = Blueprint.doc(security=[])(view)
    marked.is_public = True  # type: ignore[attr-defined]
    return marked


def is_public(view: Callable[..., Any] | None) -> bool:
    """Whether a view needs no credential."""
    return getattr(view, "is_public", False)
