"""Blueprints of the REST surfaces: flask-smorest's, whose bad arguments are refusals like any other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, NoReturn, cast

import flask_smorest
from marshmallow import Schema, ValidationError
from webargs.flaskparser import FlaskParser

from core.errors import Invalid

# What webargs calls the places of a request.
_PLACES = {"json": "body", "form": "body", "files": "body", "json_or_form": "body"}


class BadArguments(Invalid):
    """What a request said breaks its schema; `place` is body, query, path or headers.

    `malformed` says that the body is no JSON at all.  The names in `fields` have dots between their steps.
    """

    def __init__(
        self, place: str, fields: Mapping[str, list[str]], *, malformed: bool = False
    ) -> None:
        told = "; ".join(f"{name or place}: {' '.join(said)}" for name, said in fields.items())
        super().__init__(told, fields)
        self.place = place
        self.malformed = malformed


class Arguments(FlaskParser):
    """Reads arguments by a marshmallow schema."""

    DEFAULT_VALIDATION_STATUS = 400

    def handle_error(
        self,
        error: ValidationError,
        req: Any,
        schema: Schema,
        *,
        error_status_code: int | None,
        error_headers: Mapping[str, str] | None,
    ) -> NoReturn:
        """Turns marshmallow's messages into the refusal."""
        # One place is read at a time.
        (place, said), *_ = cast(dict[str, Any], error.messages).items()
        raise BadArguments(_PLACES.get(place, place), dict(_flat(said)))

    def _handle_invalid_json_error(
        self, error: Any, req: Any, *args: Any, **kwargs: Any
    ) -> NoReturn:
        raise BadArguments("body", {"": ["is not JSON"]}, malformed=True)


class Blueprint(flask_smorest.Blueprint):  # type: ignore[misc] # flask-smorest has no types
    """A blueprint that its surface's document describes."""

    ARGUMENTS_PARSER = Arguments()


def _flat(said: Any, name: str = "") -> Iterator[tuple[str, list[str]]]:
    """Marshmallow's nested messages by dotted names; those of a whole object under the object's own name."""
    if isinstance(said, dict):
        for key, inner in said.items():
            step = "" if key == "_schema" else str(key)
            yield from _flat(inner, ".".join(filter(None, (name, step))))
    else:
        yield name, [str(each) for each in (said if isinstance(said, list) else [said])]
