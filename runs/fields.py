"""The values that configurations are written with: ranges, sizes, durations and their short forms, as marshmallow fields.

A short form is loaded into the one long form that answers give back.  Source: runs.md sections 1 and 5; the
sentences of refusals are those that dstack's clients know (pydantic's).
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from marshmallow import Schema, ValidationError, fields

from runs.moments import microseconds

# What SQLite holds as an integer; nothing larger has a meaning here.
_MOST = 2**63 - 1
# No list of this interface needs more.
MOST_ITEMS = 1000
_DURATION = re.compile(r"(\d{1,12}) *([smhdw])", re.ASCII)
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_SIZE = re.compile(r"(\d{1,12}(?:\.\d{1,6})?)\s*(mb|gb|tb|)", re.ASCII | re.IGNORECASE)
_GB = {"": 1.0, "mb": 1 / 1024, "gb": 1.0, "tb": 1024.0}
_PORTS = re.compile(r"(?:(\d{1,5}|\*):)?(\d{1,5})", re.ASCII)
_VARIABLE = re.compile(r"([a-zA-Z_][a-zA-Z0-9_]*)(?:=(.*))?", re.DOTALL)
_VENDORS = {
    **{name: name for name in ("nvidia", "amd", "google", "intel", "tenstorrent")},
    "tpu": "google",
    "tt": "tenstorrent",
}
_ARCHITECTURES = {"x86": "x86", "x86_64": "x86", "amd64": "x86", "arm": "arm", "arm64": "arm"}


def bad(reason: str) -> ValidationError:
    """A value that has the right type and breaks a rule of its own."""
    return ValidationError(f"Value error, {reason}")


def refusals(expected: str, **more: str) -> dict[str, str | list[Any] | dict[Any, Any]]:
    """The sentences of a field that takes one type of value."""
    said = f"Input should be a valid {expected}"
    # A form that marshmallow looks at itself uses the key `invalid`.
    return {"required": "Field required", "null": said, "invalid": said, **more}


class Text(fields.String):
    """A text that a database, a file name and a terminal can hold."""

    default_error_messages = refusals("string")

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        if not isinstance(value, str):
            raise self.make_error("invalid")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise self.make_error("invalid") from None
        if "\0" in value:
            raise bad("a text cannot contain NUL")
        return value


class Whole(fields.Field[int]):
    """A whole number between two bounds."""

    default_error_messages = refusals("integer")

    def __init__(self, least: int = -_MOST, most: int = _MOST, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.least, self.most = least, most
        self.metadata = {"type": "integer", **self.metadata}

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> int:
        number = whole(value)
        if number is None:
            raise self.make_error("invalid")
        if number < self.least:
            raise ValidationError(f"Input should be greater than or equal to {self.least}")
        if number > self.most:
            raise ValidationError(f"Input should be less than or equal to {self.most}")
        return number


def whole(value: object) -> int | None:
    """A whole number that is written as one, or as text or float that says the same."""
    if isinstance(value, str) and re.fullmatch(r"\s*[+-]?\d{1,18}\s*", value, re.ASCII):
        return int(value)
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        return int(value)
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) > _MOST:
        return None
    return value


class Amount(fields.Float):
    """A number, with a fraction where it has one."""

    default_error_messages = refusals("number", special="Input should be a finite number")


class Flag(fields.Boolean):
    """true or false, or one of the words for them."""

    default_error_messages = refusals("boolean")


class Choice(fields.Field[str]):
    """One of some words."""

    default_error_messages = refusals("string")

    def __init__(self, *words: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.words = words
        known = [*words, None] if self.allow_none else list(words)
        self.metadata = {"type": "string", "enum": known, **self.metadata}

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> str:
        if isinstance(value, str) and value in self.words:
            return value
        *first, last = (f"'{word}'" for word in self.words)
        known = f"{', '.join(first)} or {last}" if first else last
        raise ValidationError(f"Input should be {known}")


class Uuid(fields.UUID):
    """A UUID, loaded as its usual text."""

    default_error_messages = refusals("UUID", invalid_uuid="Input should be a valid UUID")

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if not isinstance(value, str):
            raise self.make_error("invalid_uuid")
        return str(super()._deserialize(value, *args, **kwargs))


class Moment(fields.Field[int]):
    """A time with or without its zone (then UTC), loaded as microseconds since 1970."""

    default_error_messages = refusals("datetime")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.metadata = {"type": "string", "format": "date-time", **self.metadata}

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> int:
        found = microseconds(value) if isinstance(value, str) else None
        if found is None:
            raise self.make_error("invalid")
        return found


class Items(fields.List[Any]):
    """A list of at most so many: each item may cost a question to the database, or be kept."""

    default_error_messages = refusals("list")

    def __init__(self, kind: Any, *, most: int = MOST_ITEMS, **kwargs: Any) -> None:
        super().__init__(kind, **kwargs)
        self.most = most
        self.metadata = {"maxItems": most, **self.metadata}

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> list[Any]:
        if isinstance(value, list) and len(value) > self.most:
            raise ValidationError(
                f"List should have at most {self.most} items after validation, not {len(value)}"
            )
        return super()._deserialize(value, *args, **kwargs)


class Part(fields.Nested):
    """An object inside another one."""

    default_error_messages = refusals("dictionary", type="Input should be a valid dictionary")


class Table(fields.Dict):
    """An object of texts."""

    default_error_messages = refusals("dictionary")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(keys=Text(), values=Text(), **kwargs)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        try:
            return super()._deserialize(value, *args, **kwargs)  # type: ignore[no-untyped-call] # marshmallow's own
        except ValidationError as error:
            if not isinstance(error.messages, dict):
                raise
            # Marshmallow says of each name whether it or its value is wrong; the place is the name either way.
            told = {
                name: [each for said in why.values() for each in said]
                for name, why in error.messages.items()
            }
            raise ValidationError(told) from None


class Short(Part):
    """An object that also has a short form of some types (`kinds`), which `expand` turns into the long one."""

    def __init__(
        self, schema: type[Schema], expand: Callable[[Any], Any], *, kinds: Sequence[str], **kw: Any
    ) -> None:
        super().__init__(schema, **kw)
        self.expand = expand
        self.kinds, self.shapes = tuple(kinds), (schema,)

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        expanded = value if isinstance(value, Mapping) else self.expand(value)
        return super()._deserialize(expanded, *args, **kwargs)


class Span(fields.Field[dict[str, Any]]):
    """A range `{min, max}`, also as `8`, `2..8` or `16GB..`; at least one end is given."""

    default_error_messages = refusals("dictionary")

    def __init__(self, *, of: Callable[[Any], float | int], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.of = of
        self.metadata = {"type": ["object", "number", "string"], **self.metadata}

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        given = self._ends(value)
        if extra := sorted(set(given) - {"min", "max"}):
            raise ValidationError({extra[0]: ["Extra inputs are not permitted"]})
        ends = {end: self._end(given.get(end)) for end in ("min", "max")}
        least, most = ends["min"], ends["max"]
        if least is None and most is None:
            raise bad("Invalid empty range: ..")
        if least is not None and most is not None and least > most:
            raise bad(f"Invalid range order: {least}..{most}")
        return ends

    def _ends(self, value: Any) -> Mapping[str, Any]:
        if isinstance(value, Mapping):
            return value
        if isinstance(value, str) and ".." in value:
            least, _, most = value.replace(" ", "").partition("..")
            return {"min": least or None, "max": most or None}
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            return {"min": value, "max": value}
        raise self.make_error("invalid")

    def _end(self, value: Any) -> float | int | None:
        return None if value is None else self.of(value)


def count(value: Any) -> int:
    """A number of things, not negative."""
    number = whole(value)
    if number is None:
        raise ValidationError("Input should be a valid integer")
    if number < 0:
        raise ValidationError("Input should be greater than or equal to 0")
    return number


def gigabytes(value: Any) -> float:
    """A size in GB from a number or a text with MB, GB or TB."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        if not math.isfinite(value) or not 0 <= value < 2**40:
            raise bad(f"Invalid memory size: {value}")
        return float(value)
    size = _SIZE.fullmatch(value.strip()) if isinstance(value, str) else None
    if size is None:
        raise bad(f"Invalid memory size: {str(value)[:40]}")
    return float(size[1]) * _GB[size[2].lower()]


class Memory(fields.Field[float]):
    """A size, loaded as GB."""

    default_error_messages = refusals("number")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.metadata = {"type": ["number", "string"], **self.metadata}

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> float:
        return gigabytes(value)


def seconds(value: Any) -> int:
    """A duration in seconds from a number or a text like `30s`, `5m`, `2h`, `1d`, `1w`."""
    number = whole(value)
    if number is not None:
        if number < 0:
            raise bad("Duration cannot be negative")
        return number
    written = _DURATION.fullmatch(value) if isinstance(value, str) else None
    if written is None:
        raise bad(f"Cannot parse the duration {str(value)[:40]}")
    return int(written[1]) * _SECONDS[written[2]]


class Duration(fields.Field[int]):
    """A duration, loaded as seconds."""

    default_error_messages = refusals("integer")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.metadata = {"type": ["integer", "string"], **self.metadata}

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> int:
        return seconds(value)


class OffDuration(fields.Field[Any]):
    """A duration that can be turned off: seconds, `off`, or None where the default is wanted (true)."""

    default_error_messages = refusals("integer")

    def __init__(self, off: str | int | None = "off", **kwargs: Any) -> None:
        super().__init__(allow_none=True, load_default=None, **kwargs)
        self.off = off
        self.metadata = {"type": ["integer", "string", "boolean"], **self.metadata}

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        if value is True:
            return None
        if value is False or value == "off" or (self.off == -1 and value == -1):
            return self.off
        return seconds(value)


class Environment(fields.Field[dict[str, Any]]):
    """Variables as an object or as a list of NAME=VALUE; a NAME alone must be filled by the client."""

    default_error_messages = refusals("dictionary")

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.metadata = {"type": ["object", "array"], "items": {"type": "string"}, **self.metadata}

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if isinstance(value, list):
            return dict(_variable(each) for each in value)
        if not isinstance(value, Mapping):
            raise self.make_error("invalid")
        return {name: _value(name, each) for name, each in value.items()}


def _variable(text: object) -> tuple[str, Any]:
    found = _VARIABLE.fullmatch(text) if isinstance(text, str) else None
    if found is None:
        raise bad(f"{str(text)[:40]!r} is not NAME=VALUE")
    name, given = found.groups()
    return name, {"key": name} if given is None else _value(name, given)


def _value(name: str, value: object) -> Any:
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if isinstance(value, Mapping) and dict(value) == {"key": name}:
        return {"key": name}
    if not isinstance(value, str) or "\0" in value or "\0" in name or not name or "=" in name:
        raise bad(f"{name[:40]!r} must be a variable with a text for its value")
    try:
        (name + value).encode()
    except UnicodeEncodeError:
        raise bad("a variable must be valid Unicode") from None
    return value


# Short forms -----------------------------------------------------------------------------------


def expand_cpu(value: Any) -> Mapping[str, Any]:
    """`4`, `2..8`, `x86:4` as {arch, count}."""
    found: dict[str, Any] = {}
    for token in _tokens(value, "CPU spec"):
        arch = _ARCHITECTURES.get(token.lower())
        key = "arch" if arch else "count"
        if key in found:
            raise bad(f"CPU spec {key} conflict: {value}")
        found[key] = arch or token
    return found


def expand_gpu(value: Any) -> Mapping[str, Any]:
    """`1`, `A100:2`, `nvidia:24GB..:1` as an object with vendor, name, memory and count."""
    found: dict[str, Any] = {}
    given: str | list[str]
    for token in _tokens(value, "GPU spec"):
        if vendor := _VENDORS.get(token.lower()):
            key, given = "vendor", vendor
        elif token[0].isalpha():
            key, given = "name", token.split(",")
        else:
            key, given = ("memory" if any(map(str.isalpha, token)) else "count"), token
        if key in found:
            raise bad(f"GPU spec {key} conflict: {value}")
        found[key] = given
    return found


def _tokens(value: Any, what: str) -> list[str]:
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise ValidationError("Input should be a valid dictionary")
    tokens = str(value).replace(" ", "").split(":")
    if not all(tokens):
        raise bad(f"{what} contains empty token: {value}")
    return tokens


def expand_disk(value: Any) -> Mapping[str, Any]:
    """`100GB..` as {size}."""
    return {"size": value}


def expand_port(value: Any) -> Mapping[str, Any]:
    """`8000`, `80:8000`, `*:8000` as {local_port, container_port}."""
    found = None if isinstance(value, bool) else _PORTS.fullmatch(str(value))
    if found is None:
        raise bad(f"{str(value)[:40]!r} is not a port or a pair LOCAL:CONTAINER")
    local, container = found.groups()
    return {
        "local_port": None if local == "*" else int(local or container),
        "container_port": int(container),
    }


def expand_reference(value: Any) -> Mapping[str, Any]:
    """`name` or `project/name` as {project, name}."""
    parts = value.split("/") if isinstance(value, str) else []
    if not 1 <= len(parts) <= 2 or not all(parts):
        raise bad("Only `<name>` or `<project>/<name>` formats are allowed")
    return {"project": parts[0] if len(parts) == 2 else None, "name": parts[-1]}


def expand_nodes(value: Any) -> Mapping[str, Any]:
    """`2`, `0..1`, `1..` as {min, max}."""
    if isinstance(value, str) and ".." in value:
        least, _, most = value.replace(" ", "").partition("..")
        return {"min": least or 0, "max": most or None}
    return {"min": value, "max": value}


def architecture(value: Any) -> Any:
    """One word for each processor architecture."""
    return _ARCHITECTURES.get(value.lower(), value) if isinstance(value, str) else value
