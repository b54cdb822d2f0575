"""dstack.sock: the current API, and what every RPC listener of the agent has in common.

Wire rules: guest-agent.md section 2.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import secrets
import socket
from collections.abc import Callable, Mapping
from typing import Any

from flask import Flask, Response, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from core import prpc
from core.errors import CasemateError, Invalid, status_of
from core.prpc import Empty, Message, Service
from guest import schemas
from guest.service import Agent

logger = logging.getLogger(__name__)

MAX_BODY = 10 * 1024 * 1024
# So much of a refused upload is taken in and thrown away.
DRAIN = 2 * MAX_BODY
_PIECE = 64 * 1024
_ENCODER = json.JSONEncoder(separators=(",", ":"))


def create_app(agent: Agent) -> Flask:
    """The application of the current API: `/<Method>` and `/prpc/<Method>`."""
    service = Service("DstackGuest")
    verb(
        service, "GetTlsKey", schemas.GetTlsKeyRequest, schemas.GetTlsKeyResponse, agent.get_tls_key
    )
    verb(service, "GetKey", schemas.GetKeyRequest, schemas.GetKeyResponse, agent.get_key)
    verb(service, "GetQuote", schemas.ReportDataRequest, schemas.GetQuoteResponse, agent.get_quote)
    verb(service, "Attest", schemas.ReportDataRequest, schemas.AttestResponse, agent.attest)
    verb(service, "EmitEvent", schemas.EmitEventRequest, Empty, agent.emit_event)
    verb(service, "Info", Empty, schemas.InfoResponse, agent.info)
    verb(service, "Sign", schemas.SignRequest, schemas.SignResponse, agent.sign)
    verb(service, "Verify", schemas.VerifyRequest, schemas.VerifyResponse, agent.verify)
    verb(service, "Version", Empty, schemas.VersionResponse, agent.version)
    verb(service, "GpuInfo", Empty, schemas.GpuInfoResponse, agent.gpu_info)
    app = new_app("dstack")
    add_service(app, service, "/<method>", "/prpc/<method>")
    return app


def verb(
    service: Service,
    name: str,
    takes: type[Message],
    gives: type[Message],
    answer: Callable[..., Any],
) -> None:
    """Declares an RPC whose handler takes the message's fields as keyword arguments."""
    service.method(name, takes, gives)(lambda fields: answer(**fields))


def new_app(name: str) -> Flask:
    """A Flask application that answers every error as `{"error": text}` and refuses large bodies."""
    app = Flask(name, root_path=__file__.rpartition("/")[0], static_folder=None)
    # Flask's own answers to OPTIONS and to doubled slashes are HTML.
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY, PROVIDE_AUTOMATIC_OPTIONS=False)
    app.url_map.merge_slashes = False
    app.register_error_handler(CasemateError, _refusal)
    app.register_error_handler(HTTPException, _http_error)
    app.register_error_handler(Exception, _fault)
    return app


def add_service(app: Flask, service: Service, *rules: str) -> None:
    """Answers the service's methods under each rule, by POST with JSON or GET with a query."""

    def call(method: str) -> Response:
        found = service.find(method)
        return answer_json(found.call(_given(found.request)) or {})

    for rule in rules:
        app.add_url_rule(rule, rule, call, methods=["GET", "POST"])


def _given(schema: type[Message]) -> object:
    if request.method == "GET":
        return prpc.read_query_string(schema, request.query_string)
    return prpc.read_json(_body())


def _body() -> bytes:
    try:
        return prpc.whole(request.get_data(cache=False), request.content_length, MAX_BODY)
    except (OSError, ParseException) as error:
        # Broken chunks (an error of either kind, by gunicorn's release) or a client that stopped midway.
        raise Invalid(f"the request body cannot be read: {error}") from None


def answer_json(value: object, status: int = 200) -> Response:
    """A JSON answer with its length, which the JavaScript SDK relies on."""
    return Response(_ENCODER.encode(value), status, mimetype="application/json")


def _refusal(error: CasemateError) -> Response:
    return answer_json({"error": error.message}, status_of(error))


def _http_error(error: HTTPException) -> Response:
    text = f"no such path: {request.path}" if error.code == 404 else error.description or error.name
    answer = answer_json({"error": text}, error.code or 500)
    if isinstance(error, MethodNotAllowed):
        answer.allow.update(error.valid_methods or ())
    if error.code == 413 and "gunicorn.socket" in request.environ:
        answer.call_on_close(functools.partial(_drain, request.environ))
    return answer


def _drain(environ: Mapping[str, Any]) -> None:
    # A sender whose connection closes under its hands sees that, and not the refusal that came before.
    with contextlib.suppress(OSError, ParseException):
        environ["gunicorn.socket"].shutdown(socket.SHUT_WR)
        for _ in range(DRAIN // _PIECE):
            if not environ["wsgi.input"].read(_PIECE):
                return


def _fault(error: Exception) -> Response:
    reference = secrets.token_hex(4)
    logger.error("fault %s at %s", reference, request.path, exc_info=error)
    return answer_json({"error": f"internal error, reference {reference}"}, 500)
