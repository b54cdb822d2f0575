"""The /prpc convention: messages declared once, read from JSON or a query string, answered as JSON.

A message is a marshmallow schema whose fields carry their protobuf number, so that the JSON form, the
protobuf form and the OpenAPI page come from one declaration.  Source of the rules: seed 001, vmm.md
section 2 and guest-agent.md section 2; names and numbers from dstack's proto files (312dc605).
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar
from urllib.parse import parse_qsl

import marshmallow as ma

from core.errors import Invalid, NotFound, TooLarge

UINT32_MAX = 2**32 - 1
UINT64_MAX = 2**64 - 1
INT64_MAX = 2**63 - 1

# No message of ours needs a tenth of it.
_VALUES_MOST = 100_000
# One that never ends goes to the end of the text: looking for its end again and again would take hours.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)


class Text(ma.fields.Field[str]):
    """A string; absent means "", or None when optional."""

    def __init__(self, number: int, *, optional: bool = False, **kwargs: Any) -> None:
        super().__init__(
            load_default=None if optional else "", metadata={"number": number}, **kwargs
        )

    def _deserialize(self, value: object, attr: str | None, data: object, **kwargs: object) -> str:
        if not isinstance(value, str):
            raise ma.ValidationError("must be a string")
        if "\0" in value:
            raise ma.ValidationError("must not contain a NUL character")
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ma.ValidationError("must be valid Unicode") from None
        return value


class Whole(ma.fields.Field[int]):
    """A whole number between `least` and `most`; absent means 0, or None when optional."""

    least: ClassVar[int] = 0
    most: ClassVar[int] = UINT32_MAX

    def __init__(self, number: int, *, optional: bool = False, **kwargs: Any) -> None:
        super().__init__(
            load_default=None if optional else 0, metadata={"number": number}, **kwargs
        )

    def _deserialize(self, value: object, attr: str | None, data: object, **kwargs: object) -> int:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        if isinstance(value, bool) or not isinstance(value, int):
            raise ma.ValidationError("must be a whole number")
        if not self.least <= value <= self.most:
            raise ma.ValidationError(f"must be between {self.least} and {self.most}")
        return value


class UInt32(Whole):
    """0 to 4294967295."""


class UInt64(Whole):
    """0 to 2^64 - 1, a JSON number and not a string."""

    most = UINT64_MAX


class Int64(Whole):
    """-2^63 to 2^63 - 1, a JSON number and not a string."""

    least = -INT64_MAX - 1
    most = INT64_MAX


class Flag(ma.fields.Field[bool]):
    """true or false; absent means false, or None when optional."""

    def __init__(self, number: int, *, optional: bool = False, **kwargs: Any) -> None:
        super().__init__(
            load_default=None if optional else False, metadata={"number": number}, **kwargs
        )

    def _deserialize(self, value: object, attr: str | None, data: object, **kwargs: object) -> bool:
        if not isinstance(value, bool):
            raise ma.ValidationError("must be true or false")
        return value


class HexBytes(ma.fields.Field[bytes]):
    """Bytes, in JSON hex of either case with an optional 0x; printed in lower case without it."""

    def __init__(self, number: int, *, optional: bool = False, **kwargs: Any) -> None:
        super().__init__(
            load_default=None if optional else b"", metadata={"number": number}, **kwargs
        )

    def _deserialize(
        self, value: object, attr: str | None, data: object, **kwargs: object
    ) -> bytes:
        if not isinstance(value, str):
            raise ma.ValidationError("must be hex text")
        digits = value[2:] if value[:2] in ("0x", "0X") else value
        if len(digits) % 2 or not re.fullmatch(r"[0-9A-Fa-f]*", digits):
            raise ma.ValidationError("must be hex text with an even number of digits")
        return bytes.fromhex(digits)

    def _serialize(
        self, value: bytes | None, attr: str | None, obj: object, **kwargs: object
    ) -> Any:
        return None if value is None else value.hex()


class Nested(ma.fields.Nested):
    """A message inside a message; absent means None."""

    def __init__(self, number: int, schema: type[Message], **kwargs: Any) -> None:
        super().__init__(schema, load_default=None, metadata={"number": number}, **kwargs)


class Repeated(ma.fields.List[Any]):
    """A list of up to `most` fields of one kind; absent means the empty list."""

    def __init__(
        self,
        number: int,
        of: ma.fields.Field[Any] | type[Message],
        *,
        most: int = 1000,
        **kwargs: Any,
    ) -> None:
        inner = of if isinstance(of, ma.fields.Field) else ma.fields.Nested(of)
        super().__init__(inner, load_default=list, metadata={"number": number}, **kwargs)
        self.most = most

    def _deserialize(
        self, value: object, attr: str | None, data: object, **kwargs: object
    ) -> list[Any]:
        if not isinstance(value, list):
            raise ma.ValidationError("must be a list")
        # Before the entries are looked at: a body has room for millions of them.
        if len(value) > self.most:
            raise ma.ValidationError(f"at most {self.most} entries")
        return super()._deserialize(value, attr, data, **kwargs)


# marshmallow's message for a nested message that is no object.
_WORDS = {"type": "must be an object"}


class Message(ma.Schema):
    """A wire message: unknown fields are ignored, null means absent, every field is printed.

    A subclass that sets `makes` to a dataclass loads into it; otherwise it loads into a dict.
    """

    makes: ClassVar[Callable[..., Any] | None] = None
    error_messages = _WORDS

    class Meta:
        unknown = ma.EXCLUDE

    @ma.pre_load
    def _null_is_absent(self, data: object, **kwargs: object) -> object:
        if isinstance(data, Mapping):
            return {key: value for key, value in data.items() if value is not None}
        return data

    @ma.post_load
    def _make(self, data: dict[str, Any], **kwargs: object) -> Any:
        makes = type(self).makes
        return data if makes is None else makes(**data)


class Empty(Message):
    """google.protobuf.Empty."""


@functools.cache
def instance(schema: type[ma.Schema]) -> ma.Schema:
    """The one instance of a message that all threads use: making one costs more than loading with it."""
    return schema()


def load(schema: type[Message], data: object) -> Any:
    """Checks a decoded JSON value against a message; Invalid names each bad field."""
    if not isinstance(data, Mapping):
        raise Invalid("the request body must be a JSON object")
    try:
        return instance(schema).load(data)
    except ma.ValidationError as error:
        messages = error.messages if isinstance(error.messages, dict) else {}
        reasons = dict(_flatten(messages))
        text = "; ".join(f"{name}: {', '.join(why)}" for name, why in reasons.items())
        raise Invalid(text, reasons) from None


def _flatten(messages: Mapping[Any, Any], prefix: str = "") -> Iterable[tuple[str, list[str]]]:
    for key, value in messages.items():
        name = (
            prefix
            if key == "_schema"  # what marshmallow says of a nested message as a whole
            else f"{prefix}[{key}]"
            if isinstance(key, int)
            else f"{prefix}.{key}"
            if prefix
            else str(key)
        )
        if isinstance(value, Mapping):
            yield from _flatten(value, name)
        else:
            yield name, [str(reason) for reason in value]


def whole(body: bytes, length: int | None, limit: int) -> bytes:
    """A request's body unless it may have been cut; TooLarge then.

    Of a body that came in chunks (`length` is None) Werkzeug gives as much as the limit leaves, without a word.
    """
    if length is None and len(body) >= limit:
        raise TooLarge(f"the request body has more than {limit - 1} bytes")
    return body


def read_json(body: bytes) -> object:
    """Decodes a JSON body; an empty one is the empty message.

    Invalid when it is not JSON, no object, or holds more than 100,000 values.
    """
    begin = body[:1000].lstrip() or body.lstrip()
    if not begin:
        return {}
    # Before it is decoded: ten megabytes of `{},{},{}` are 250 megabytes of objects.
    if not begin.startswith((b"{", b"\xef", b"\xfe", b"\xff", b"\0")):
        raise Invalid("the request body is not a JSON object")
    if _values(body) > _VALUES_MOST:
        raise Invalid(f"the request body holds more than {_VALUES_MOST} values")
    try:
        return json.loads(body, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        why = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise Invalid(f"the request body is not valid JSON: {why}") from None


def _values(body: bytes) -> int:
    """How many values a JSON text has room for; the contents of strings are counted only at need."""
    marks = (b",", b"{", b"[")
    count = sum(map(body.count, marks))
    if count <= _VALUES_MOST:
        return count
    bare = _STRING.sub(b"", body)
    return sum(map(bare.count, marks))


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a JSON number")


def read_query(schema: type[Message], pairs: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Turns query pairs into the JSON value they stand for, by the kinds of the message's fields.

    Lists come as `name[0]=a&name[1]=b`, `name[]=a` or a repeated name.
    """
    fields = instance(schema).fields
    data: dict[str, Any] = {}
    for key, text in pairs:
        name = re.sub(r"\[\d*\]$", "", key)
        field = fields.get(name)
        if isinstance(field, ma.fields.List):
            data.setdefault(name, []).append(_from_text(field.inner, text))
        elif field is not None and name == key:
            data[name] = _from_text(field, text)
    return data


def read_query_string(schema: type[Message], text: bytes) -> dict[str, Any]:
    """The same of a query string as it came; Invalid when it is not ASCII, or its escapes are not UTF-8."""
    try:
        pairs = parse_qsl(text.decode("ascii"), keep_blank_values=True, errors="strict")
    except ValueError as error:
        raise Invalid(f"the query string cannot be read: {error}") from None
    return read_query(schema, pairs)


def _from_text(field: ma.fields.Field[Any], text: str) -> object:
    if isinstance(field, Whole) and re.fullmatch(r"-?\d{1,20}", text):
        return int(text)
    if isinstance(field, Flag):
        return {"true": True, "1": True, "": True, "false": False, "0": False}.get(text, text)
    return text


@dataclass(frozen=True)
class Method:
    """One RPC: its name, the messages it takes and gives, and the function that answers it."""

    name: str
    request: type[Message]
    response: type[Message]
    handler: Callable[[Any], Any]

    def answer(self, data: object) -> Any:
        """Checks the request and asks the handler; what it gives, not yet as JSON."""
        return self.handler(load(self.request, data))

    def call(self, data: object) -> dict[str, Any] | None:
        """The answer to a request as JSON; None when Empty."""
        answer = self.answer(data)
        if self.response is Empty:
            return None
        dumped: dict[str, Any] = instance(self.response).dump(answer)
        return dumped


class Service:
    """The methods of one RPC service; `prefixes` may stand before a method's name and are dropped."""

    def __init__(self, *prefixes: str) -> None:
        self.prefixes = prefixes
        self.methods: dict[str, Method] = {}

    def method(
        self, name: str, request: type[Message] = Empty, response: type[Message] = Empty
    ) -> Callable[[Callable[[Any], Any]], Callable[[Any], Any]]:
        """Declares the decorated function as the answer to `name`; it takes the loaded request."""

        def declare(handler: Callable[[Any], Any]) -> Callable[[Any], Any]:
            self.methods[name] = Method(name, request, response, handler)
            return handler

        return declare

    def find(self, path: str) -> Method:
        """The method that a path segment names, or NotFound."""
        name = path
        for prefix in self.prefixes:
            name = name.removeprefix(f"{prefix}.")
        if name not in self.methods:
            raise NotFound(f"unknown method: {path}")
        return self.methods[name]
