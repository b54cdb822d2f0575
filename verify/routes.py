"""`POST /verify` and `GET /health`: open to everybody, since evidence is for everybody (attestation.md section 6)."""

from __future__ import annotations

import json
import time

from flask import Blueprint, Response, current_app, request

from verify import schemas
from verify.service import Verifier

blueprint = Blueprint("verify", __name__)


@blueprint.post("/verify")
def verify() -> Response:
    """Verifies evidence; 200 whatever comes of it, 400 when it cannot be read."""
    verifier: Verifier = current_app.extensions["verifier"]
    asked = schemas.read(request.get_data())
    return _json(schemas.answer(verifier.verify(asked, int(time.time()))), 200)


@blueprint.get("/health")
def health() -> Response:
    """Says that the verifier answers."""
    return _json({"status": "ok", "service": "dstack-verifier"}, 200)


def refusal(message: str, status: int, _: Exception) -> Response:
    """An error in the form of this surface."""
    return _json({"error": message}, status)


def _json(body: dict[str, object], status: int) -> Response:
    return Response(json.dumps(body), status, mimetype="application/json")
