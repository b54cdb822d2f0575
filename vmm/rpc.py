"""How the VMM's surfaces speak prpc over HTTP: a call is read, dispatched and answered here once."""

from __future__ import annotations

import json

from flask import Response, request

from core.errors import Unsupported
from core.prpc import Service, read_json, read_query

PROTOBUF = ("application/octet-stream", "application/x-protobuf", "application/protobuf")


def respond(service: Service, path: str) -> Response:
    """Answers the current request to `path` (a method name, maybe with a service prefix)."""
    method = service.find(path)
    if request.method == "GET":
        data: object = read_query(method.request, request.args.items(multi=True))
    elif request.mimetype in PROTOBUF and "json" not in request.args:
        raise Unsupported("protobuf bodies are not offered yet; send JSON")
    else:
        data = read_json(request.get_data(cache=False))
    answer = method.call(data)
    # Empty prints as nothing: clients treat that and null alike (vmm.md section 2).
    body = b"" if answer is None else json.dumps(answer).encode()
    return Response(body, mimetype="application/json")
