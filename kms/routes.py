"""The KMS over HTTP: `/prpc/<Method>`, `/health` and `/metrics`, and what its other listeners have in common.

Source: kms.md section 2; the wire rules are those of guest-agent.md section 2, with protobuf beside JSON.
"""

from __future__ import annotations

import json
import logging
import secrets
from collections.abc import Callable
from typing import Any

from flask import Flask, Response, g, request
from gunicorn.http.errors import ParseException
from werkzeug.exceptions import HTTPException, MethodNotAllowed

from core import protobuf, prpc
from core.errors import CasemateError, Conflict, Invalid, status_of
from core.prpc import Message, Service, Text
from kms import schemas
from kms.service import Caller, KmsService

logger = logging.getLogger(__name__)

MAX_BODY = 10 * 1024 * 1024
# kms.md section 2: what the counters of /metrics count.
COUNTED = ("GetAppKey", "GetKmsKey", "SignCert")
# Those of them that judge the evidence of the client certificate themselves.
_JUDGING = ("GetAppKey", "GetKmsKey")
_PROTOBUF = ("application/octet-stream", "application/x-protobuf", "application/protobuf")


class Refusal(Message):
    """The error body of protobuf callers."""

    error = Text(1)


def create_app(kms: KmsService, version: str) -> Flask:
    """The application of the main listener."""
    app = new_app("kms", version)
    service = rpc_service(kms)

    def call(method: str) -> Response:
        found = service.find(method)
        # Evidence is verified on every request, whatever is asked (kms.md section 2).
        g.caller = kms.caller(_client_certificate())
        if found.name not in _JUDGING:
            kms.check(g.caller)
        return respond(found)

    def counted(method: str) -> Response:
        if method.removeprefix("KMS.") not in COUNTED:
            return call(method)
        failed = True
        try:
            answer = call(method)
            failed = False
            return answer
        finally:
            kms.counters.count(failed=failed)

    app.add_url_rule("/prpc/<method>", "prpc", counted, methods=["GET", "POST"])
    app.add_url_rule("/health", "health", lambda: Response("OK", mimetype="text/plain"))
    if kms.settings.core.metrics.enabled:
        app.add_url_rule("/metrics", "metrics", lambda: _metrics(kms))
    return app


def rpc_service(kms: KmsService) -> Service:
    """The methods of the KMS; those that need evidence find the caller in the request's context."""
    service = Service("KMS")
    service.method("GetMeta", response=schemas.GetMetaResponse)(lambda _: kms.get_meta())
    service.method("GetTempCaCert", response=schemas.GetTempCaCertResponse)(
        lambda _: kms.get_temp_ca_cert()
    )
    service.method("GetAppEnvEncryptPubKey", schemas.AppId, schemas.PublicKeyResponse)(
        lambda asked: kms.get_app_env_encrypt_pub_key(**asked)
    )
    service.method("GetAppKey", schemas.GetAppKeyRequest, schemas.AppKeyResponse)(
        lambda asked: kms.get_app_key(_caller(), asked)
    )
    service.method("GetKmsKey", schemas.GetKmsKeyRequest, schemas.KmsKeyResponse)(
        lambda asked: kms.get_kms_key(_caller(), **asked)
    )
    service.method("SignCert", schemas.SignCertRequest, schemas.SignCertResponse)(
        lambda asked: kms.sign_cert(asked)
    )
    return service


def _caller() -> Caller:
    caller: Caller = g.caller
    return caller


def _client_certificate() -> bytes | None:
    sock = request.environ.get("gunicorn.socket")
    found: bytes | None = sock.getpeercert(binary_form=True) if sock is not None else None
    return found


def _metrics(kms: KmsService) -> Response:
    lines = []
    for name, help_text, value in (
        ("requests", "Calls that need evidence.", kms.counters.requests.value),
        ("failures", "Those of them that were refused.", kms.counters.failures.value),
    ):
        full = f"dstack_kms_attestation_{name}_total"
        lines += [f"# HELP {full} {help_text}", f"# TYPE {full} counter", f"{full} {value}"]
    return Response("\n".join(lines) + "\n", mimetype="text/plain; version=0.0.4")


def new_app(name: str, version: str) -> Flask:
    """A Flask application that answers every error as `{"error": text}` and refuses large bodies."""
    app = Flask(name, root_path=__file__.rpartition("/")[0], static_folder=None)
    # Flask's own answers to OPTIONS and to doubled slashes are HTML.
    app.config.update(MAX_CONTENT_LENGTH=MAX_BODY, PROVIDE_AUTOMATIC_OPTIONS=False)
    app.url_map.merge_slashes = False
    app.register_error_handler(Exception, _refuse)

    def sign(response: Response) -> Response:
        response.headers["X-App-Version"] = f"v{version}"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    app.after_request(sign)
    return app


def add_service(app: Flask, service: Service) -> None:
    """Answers the service's methods under /prpc/."""
    call: Callable[[str], Response] = lambda method: respond(service.find(method))
    app.add_url_rule("/prpc/<method>", "prpc", call, methods=["GET", "POST"])


def respond(method: prpc.Method) -> Response:
    """Reads the current request for a method, and answers in the form that it came in."""
    if request.method == "GET":
        data: Any = prpc.read_query_string(method.request, request.query_string)
    elif _is_protobuf():
        data = protobuf.decode(method.request, _body())
    else:
        data = prpc.read_json(_body())
    answer = method.call(data) or {}
    if _is_protobuf():
        body = protobuf.encode(method.response, answer)
        return Response(body, mimetype="application/octet-stream")
    return _json(answer)


def _body() -> bytes:
    try:
        return prpc.whole(request.get_data(cache=False), request.content_length, MAX_BODY)
    except (OSError, ParseException) as error:
        raise Invalid(f"the request body cannot be read: {error}") from None


def _is_protobuf() -> bool:
    if request.method != "POST" or request.mimetype not in _PROTOBUF:
        return False
    return request.args.get("json", "false") not in ("", "1", "true")


def _json(value: object, status: int = 200) -> Response:
    return Response(json.dumps(value), status, mimetype="application/json")


def _refuse(error: Exception) -> Response:
    if isinstance(error, CasemateError):
        # A KMS that has its keys already is a bad request here (kms.md section 3).
        status = 400 if isinstance(error, Conflict) else status_of(error)
        message = error.message
    elif isinstance(error, HTTPException) and error.code is not None:
        status = error.code
        message = f"{request.path}: {error.description or error.name}"
    else:
        reference = secrets.token_hex(6)
        logger.error("request failed, reference %s", reference, exc_info=error)
        status, message = 500, f"internal error; the log of the KMS has it under {reference}"
    if status == 400:
        logger.warning("refused %s: %s", request.path, message)
    if _is_protobuf():
        body = protobuf.encode(Refusal, {"error": message})
        return Response(body, status, mimetype="application/octet-stream")
    answer = _json({"error": message}, status)
    if isinstance(error, MethodNotAllowed):
        answer.allow.update(error.valid_methods or ())
    return answer
