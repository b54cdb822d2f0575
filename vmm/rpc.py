"""How the VMM's surfaces speak prpc over HTTP: a call is read, dispatched and answered here once."""

from __future__ import annotations

import json
from collections.abc import Iterator
from io import BytesIO
from typing import Any

from flask import Response, request
from marshmallow import Schema
from marshmallow.fields import Field

from core import protobuf
from core.prpc import Empty, Message, Service, Text, instance, read_json, read_query

_PROTOBUF = ("application/octet-stream", "application/x-protobuf", "application/protobuf")
_BLOCK = 64 * 1024


class Refusal(Message):
    """The error body; both names are in use among dstack's clients."""

    message = Text(1)
    error = Text(1001)


def respond(service: Service, path: str) -> Response:
    """Answers the current request to `path` (a method name, maybe with a service prefix)."""
    method, speaks_protobuf = service.find(path), is_protobuf()
    if request.method != "POST":
        data: object = read_query(method.request, request.args.items(multi=True))
    elif speaks_protobuf:
        data = protobuf.decode(method.request, request.get_data(cache=False))
    else:
        data = read_json(request.get_data(cache=False))
    if speaks_protobuf:
        encoded = protobuf.encode(method.response, method.call(data) or {})
        return Response(encoded, mimetype="application/octet-stream")
    answer = method.answer(data)
    # Empty prints as nothing: clients treat that and null alike (vmm.md section 2).
    body = [] if method.response is Empty else _json(instance(method.response), answer)
    return Response(body, mimetype="application/json")


def _json(schema: Schema, answer: Any) -> list[bytes]:
    """A message as JSON; what comes one by one is written one by one, and never there whole but as text."""
    given = answer if isinstance(answer, dict) else {}
    lists = {name: value for name, value in given.items() if isinstance(value, Iterator)}
    if not lists:
        return [json.dumps(schema.dump(answer)).encode()]
    message = schema.dump({**given, **dict.fromkeys(lists, ())})
    return list(_blocks(_pieces(schema, message, lists)))


def _blocks(pieces: Iterator[str]) -> Iterator[bytes]:
    """A long text as a socket takes it: one large block would leave a hole of its size in the process's memory."""
    block = BytesIO()
    for piece in pieces:
        block.write(piece.encode())
        if block.tell() >= _BLOCK:
            yield block.getvalue()
            block = BytesIO()
    yield block.getvalue()


def _pieces(
    schema: Schema, message: dict[str, Any], lists: dict[str, Iterator[Any]]
) -> Iterator[str]:
    before = "{"
    for name, value in message.items():
        yield f"{before}{json.dumps(name)}: "
        if name in lists:
            yield from _entries(schema.fields[name], name, lists[name])
        else:
            yield json.dumps(value)
        before = ", "
    yield "}"


def _entries(field: Field[Any], name: str, values: Iterator[Any]) -> Iterator[str]:
    yield "["
    before = ""
    for value in values:
        (entry,) = field.serialize(name, {name: [value]})
        yield before + json.dumps(entry)
        before = ", "
    yield "]"


def refusal(message: str, status: int, _: Exception) -> Response:
    """An error in the form that the current request speaks."""
    if is_protobuf():
        body = protobuf.encode(Refusal, {"message": message})
        return Response(body, status, mimetype="application/octet-stream")
    body = json.dumps({"message": message, "error": message}).encode()
    return Response(body, status, mimetype="application/json")


def is_protobuf() -> bool:
    """Whether the current request is protobuf; curl's own content type means JSON (seed 001)."""
    asks_json = request.args.get("json", "false") in ("", "1", "true")
    return request.method == "POST" and request.mimetype in _PROTOBUF and not asks_json
