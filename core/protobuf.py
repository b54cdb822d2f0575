"""The protobuf form of the messages of core/prpc.py, from the field numbers they carry.

Both ways go through the JSON form, so that one set of rules checks either.  Source of the encoding: the public
Protocol Buffers encoding guide; groups (wire types 3 and 4) are not used by any message and are refused.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from typing import Any

import marshmallow as ma

from core.errors import Invalid
from core.prpc import Flag, HexBytes, Int64, Whole, instance

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_DEPTH_MOST = 16
# Two bytes make a field, and an entry of a list: ten megabytes of them would hold a thread for ten seconds.
_FIELDS_MOST = 100_000
_U64 = 2**64


def decode(schema: type[ma.Schema], data: bytes) -> dict[str, Any]:
    """The JSON value that an encoded message stands for; Invalid when the bytes are no such message.

    Unknown fields are skipped; of a scalar that comes twice the last counts.
    """
    return _decode(schema, memoryview(data), 0, itertools.count(1))


def encode(schema: type[ma.Schema], message: Mapping[str, Any]) -> bytes:
    """Encodes the JSON form of a message; values that are zero or empty are left out unless optional."""
    return b"".join(_field(field, message.get(name)) for name, field in _by_number(schema).values())


@functools.cache
def _by_number(schema: type[ma.Schema]) -> dict[int, tuple[str, ma.fields.Field[Any]]]:
    fields = instance(schema).fields.items()
    return {field.metadata["number"]: (name, field) for name, field in fields}


def _decode(
    schema: type[ma.Schema], data: memoryview, depth: int, count: Iterator[int]
) -> dict[str, Any]:
    if depth > _DEPTH_MOST:
        raise Invalid("protobuf: nested too deeply")
    known = _by_number(schema)
    message: dict[str, Any] = {}
    for number, wire, value in _fields(data):
        if next(count) > _FIELDS_MOST:
            raise Invalid(f"protobuf: more than {_FIELDS_MOST} fields")
        if number not in known:
            continue
        name, field = known[number]
        if isinstance(field, ma.fields.List):
            entries = message.setdefault(name, [])
            if wire == _BYTES and isinstance(field.inner, (Whole, Flag)):
                entries += [_scalar(field.inner, name, _VARINT, each) for each in _packed(value)]
            else:
                entries.append(_value(field.inner, name, wire, value, depth, count))
        else:
            message[name] = _value(field, name, wire, value, depth, count)
    return message


def _value(
    field: ma.fields.Field[Any], name: str, wire: int, value: Any, depth: int, count: Iterator[int]
) -> Any:
    if isinstance(field, ma.fields.Nested):
        if wire != _BYTES:
            raise Invalid.field(name, "protobuf: must be a message")
        return _decode(type(field.schema), value, depth + 1, count)
    return _scalar(field, name, wire, value)


def _scalar(field: ma.fields.Field[Any], name: str, wire: int, value: Any) -> Any:
    if isinstance(field, (Whole, Flag)):
        if wire != _VARINT:
            raise Invalid.field(name, "protobuf: must be a varint")
        if isinstance(field, Flag):
            return bool(value)
        return value - _U64 if isinstance(field, Int64) and value >= _U64 // 2 else value
    if wire != _BYTES:
        raise Invalid.field(name, "protobuf: must have a length")
    if isinstance(field, HexBytes):
        return bytes(value).hex()
    try:
        return str(value, "utf-8")
    except UnicodeDecodeError:
        raise Invalid.field(name, "must be valid UTF-8") from None


def _fields(data: memoryview) -> Iterator[tuple[int, int, Any]]:
    at = 0
    while at < len(data):
        key, at = _read_varint(data, at)
        number, wire = key >> 3, key & 7
        if number == 0:
            raise Invalid("protobuf: there is no field 0")
        if wire == _VARINT:
            value, at = _read_varint(data, at)
            yield number, wire, value
            continue
        if wire == _BYTES:
            size, at = _read_varint(data, at)
        elif wire in (_FIXED64, _FIXED32):
            size = 8 if wire == _FIXED64 else 4
        else:
            raise Invalid(f"protobuf: wire type {wire} of field {number} is not supported")
        if size > len(data) - at:
            raise Invalid(f"protobuf: field {number} ends after the message")
        yield number, wire, data[at : at + size]
        at += size


def _packed(data: memoryview) -> Iterator[int]:
    at = 0
    while at < len(data):
        value, at = _read_varint(data, at)
        yield value


def _read_varint(data: memoryview, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise Invalid("protobuf: the message ends in the middle of a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value % _U64, at
    raise Invalid("protobuf: a number has more than 10 bytes")


def _varint(value: int) -> bytes:
    value %= _U64
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _field(field: ma.fields.Field[Any], value: Any) -> bytes:
    number: int = field.metadata["number"]
    if value is None:
        return b""
    if isinstance(field, ma.fields.List):
        return b"".join(_one(number, field.inner, entry) for entry in value)
    # A zero is the same as nothing, but for fields that can be absent.
    is_optional = field.load_default is None
    return _one(number, field, value) if value or is_optional else b""


def _one(number: int, field: ma.fields.Field[Any], value: Any) -> bytes:
    if isinstance(field, (Whole, Flag)):
        return _varint(number << 3 | _VARINT) + _varint(int(value))
    if isinstance(field, ma.fields.Nested):
        content = encode(type(field.schema), value)
    elif isinstance(field, HexBytes):
        content = bytes.fromhex(value)
    else:
        content = str(value).encode()
    return _varint(number << 3 | _BYTES) + _varint(len(content)) + content
