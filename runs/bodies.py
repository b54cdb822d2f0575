"""Objects of requests, in which every field must be known."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from marshmallow import (
    RAISE,
    Schema,
    fields,
)

from runs.fields import (
    Items,
)

BODY_MESSAGES: dict[str, str] = {
    "unknown": "Extra inputs are not permitted",
    "type": "Input should be a valid dictionary",
}


class Body(Schema):
    """An object in which every field must be known."""

    class Meta:
        unknown = RAISE

    error_messages = BODY_MESSAGES


def optional(kind: type[fields.Field[Any]], *args: Any, **kwargs: Any) -> fields.Field[Any]:
    """A field that may be absent or null."""
    return kind(*args, allow_none=True, load_default=None, **kwargs)


def several(kind: fields.Field[Any] | type[fields.Field[Any]], **kwargs: Any) -> fields.Field[Any]:
    """A list that may be absent (then empty)."""
    return Items(kind, load_default=list, **kwargs)


def default_of(schema: type[Schema], given: Mapping[str, Any] | None = None) -> Callable[[], Any]:
    """What an absent object is: the schema's own defaults."""
    known = schema()
    return lambda: known.load(dict(given or {}))
