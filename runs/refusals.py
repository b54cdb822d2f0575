"""The refusals of this surface: their codes, and the bodies that its clients know (runs.md section 1).

A refusal with a code is a mistake of the caller: 400 and a list of one.  Those without one are about the caller and
the project in the path, and come as a single object.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from core.errors import CasemateError, Conflict, Forbidden, Invalid, NotFound, Unsupported
from rest.blueprint import BadArguments

RESOURCE_EXISTS = "resource_exists"
RESOURCE_NOT_EXISTS = "resource_not_exists"
ERROR = "error"

# The sentences of runs/fields.py and runs/specs.py by what clients call their kind.
_TYPES = (
    ("Field required", "missing"),
    ("Extra inputs", "extra_forbidden"),
    ("Input should be a valid string", "string_type"),
    ("Input should be a valid integer", "int_parsing"),
    ("Input should be a valid number", "float_parsing"),
    ("Input should be a finite number", "finite_number"),
    ("Input should be a valid boolean", "bool_parsing"),
    ("Input should be a valid list", "list_type"),
    ("Input should be a valid dictionary", "dict_type"),
    ("Input should be a valid UUID", "uuid_parsing"),
    ("Input should be a valid datetime", "datetime_from_date_parsing"),
    ("Input should be greater than or equal", "greater_than_equal"),
    ("Input should be greater", "greater_than"),
    ("Input should be less", "less_than_equal"),
    ("Input should be", "enum"),
    ("Input tag", "union_tag_invalid"),
    ("Unable to extract tag", "union_tag_not_found"),
    ("String should match", "string_pattern_mismatch"),
    ("List should have at most", "too_long"),
)


def missing(what: str) -> NotFound:
    """There is no such thing in the project."""
    return NotFound(f"{what} not found", code=RESOURCE_NOT_EXISTS)


def exists(message: str) -> Conflict:
    """There is such a thing already."""
    return Conflict(message, code=RESOURCE_EXISTS)


def refused(message: str) -> Conflict:
    """The state of things stands in the way."""
    return Conflict(message, code=ERROR)


def outrun() -> Conflict:
    """A run or fleet is not any more as the client saw it when it made its plan."""
    return refused("Failed to apply plan. Resource has been changed. Try again or use force apply.")


def denied() -> Forbidden:
    """The caller has no such role."""
    return Forbidden("Access denied")


def unsupported(what: str) -> Unsupported:
    """A part of dstack's interface that this service leaves out."""
    return Unsupported(f"{what}: not supported by Casemate")


def body(message: str, status: int, error: Exception) -> tuple[int, Any]:
    """Status and `detail` of a refusal."""
    if isinstance(error, BadArguments):
        return 422, list(_rows(error))
    if isinstance(error, CasemateError) and "code" in error.details:
        return 400, [{"msg": message, "code": error.details["code"]}]
    if isinstance(error, Invalid):
        fields = [{"loc": ["body", *name.split(".")]} for name in error.fields]
        return 400, [{"msg": message, "code": ERROR} | ({"fields": fields} if fields else {})]
    if isinstance(error, Conflict | Unsupported):
        return 400, [{"msg": message, "code": ERROR}]
    if isinstance(error, Forbidden | NotFound):
        return status, {"msg": message, "code": None}
    if status in (404, 405):
        return status, "Not Found" if status == 404 else "Method Not Allowed"
    return status, [{"msg": message, "code": "server_error" if status >= 500 else ERROR}]


def _rows(error: BadArguments) -> Iterator[dict[str, Any]]:
    if error.malformed:
        told = {"type": "json_invalid", "loc": [error.place, 0], "msg": "JSON decode error"}
        yield {**told, "input": {}, "ctx": {"error": " ".join(error.fields[""])}}
        return
    for name, sentences in error.fields.items():
        loc = name.split(".") if name else []
        for said in sentences:
            kind = next((kind for begin, kind in _TYPES if said.startswith(begin)), "value_error")
            of = loc[:-1] if kind == "missing" else loc
            row = {"type": kind, "loc": [error.place, *map(_step, loc)], "msg": said}
            yield {**row, "input": _at(error.given, of)} | _context(kind, said)


def _step(step: str) -> str | int:
    return int(step) if step.isdigit() else step


def _at(asked: Any, loc: list[str]) -> Any:
    """What a request has at a place; a step that only names a kind of configuration is none of the request."""
    for step in loc:
        if isinstance(asked, Mapping):
            asked = asked.get(step, asked)
        elif isinstance(asked, list) and step.isdigit() and int(step) < len(asked):
            asked = asked[int(step)]
    return asked


def _context(kind: str, said: str) -> dict[str, Any]:
    if kind == "union_tag_invalid":
        tag, _, tags = said.removeprefix("Input tag '").partition("' found using 'type'")
        expected = tags.partition(": ")[2]
        return {"ctx": {"discriminator": "'type'", "tag": tag, "expected_tags": expected}}
    if kind == "value_error":
        return {"ctx": {"error": {}}}
    return {}
