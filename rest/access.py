"""Who makes a call of the REST surfaces, and which calls anybody may make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from flask import g

from accounts.roles import Caller
from rest.blueprint import Blueprint


def caller() -> Caller:
    """Whoever makes the current request; never None in a view that is not public."""
    found: Caller = g.caller
    return found


def public(view: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a view that needs no credential and looks at none; goes below the blueprint's decorators."""
    marked: Callable[..., Any] = Blueprint.doc(security=[])(view)
    marked.is_public = True  # type: ignore[attr-defined] # a function takes any attribute
    return marked


def is_public(view: Callable[..., Any] | None) -> bool:
    """Whether a view needs no credential."""
    return getattr(view, "is_public", False)


def signable(view: Callable[..., Any]) -> Callable[..., Any]:
    """Marks a view that also takes a signature over the request, which its blueprint looks at, for a credential."""
    view.is_signable = True  # type: ignore[attr-defined] # the same
    return view


def is_signable(view: Callable[..., Any] | None) -> bool:
    """Whether a view also takes signed requests."""
    return getattr(view, "is_signable", False)
