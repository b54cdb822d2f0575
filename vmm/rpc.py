"""How the VMM's surfaces speak prpc over HTTP: a call is read, dispatched and answered here once."""

from __future__ import annotations

import json

from flask import Response, request

from core import protobuf
from core.prpc import Message, Service, Text, read_json, read_query

_PROTOBUF = ("application/octet-stream", "application/x-protobuf", "application/protobuf")


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
    answer = method.call(data)
    if speaks_protobuf:
        body = protobuf.encode(method.response, answer or {})
        return Response(body, mimetype="application/octet-stream")
    # Empty prints as nothing: clients treat that and null alike (vmm.md section 2).
    body = b"" if answer is None else json.dumps(answer).encode()
    return Response(body, mimetype="application/json")


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
