"""How the forms of answers are put together, for the document of this interface (pure)."""

from __future__ import annotations

from typing import Any

import marshmallow as ma
from marshmallow import fields


class Answer(ma.Schema):
    """Documents an answer, which goes out as it is."""

    def dump(self, obj: Any, *, many: bool | None = None) -> Any:
        """The answer itself."""
        return obj


def form(called: str, /, **parts: fields.Field[Any]) -> type[Answer]:
    """A form of that name with these parts."""
    made: type[Answer] = Answer.from_dict(parts, name=called)  # type: ignore[assignment] # a subclass of its own class
    return made


def one(of: type[Answer]) -> fields.Nested:
    """An object."""
    return fields.Nested(of, required=True)


def one_or_none(of: type[Answer]) -> fields.Nested:
    """An object, or null."""
    return fields.Nested(of, required=True, allow_none=True)


def many(of: type[Answer], *, allow_none: bool = False) -> fields.List[Any]:
    """Some objects."""
    return fields.List(fields.Nested(of), required=True, allow_none=allow_none)


def texts(*, allow_none: bool = False) -> fields.List[Any]:
    """Some texts."""
    return fields.List(fields.String(), required=True, allow_none=allow_none)


TEXT = fields.String(required=True)
TEXT_OR_NONE = fields.String(required=True, allow_none=True)
TEXT_MAYBE = fields.String()
WHOLE = fields.Integer(required=True)
WHOLE_OR_NONE = fields.Integer(required=True, allow_none=True)
NUMBER = fields.Float(required=True)
FLAG = fields.Boolean(required=True)
FLAG_OR_NONE = fields.Boolean(required=True, allow_none=True)
OBJECT_OR_NONE = fields.Dict(required=True, allow_none=True)
NOTHING = fields.Raw(required=True, allow_none=True)


def own_page(name: str, items: str, of: type[Answer]) -> type[Answer]:
    """A page as apps and revisions are listed."""
    counts = dict.fromkeys(("total", "page", "page_size", "total_pages"), WHOLE)
    return form(name, **{items: many(of)}, **counts)


def page(name: str, of: type[Answer]) -> type[Answer]:
    """A page as most lists are written."""
    counts = dict.fromkeys(("total", "page", "page_size", "pages"), WHOLE)
    return form(name, items=many(of), **counts)
