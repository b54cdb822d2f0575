"""/api-docs: the interfaces of this service as documents, and an offline page to read and try them."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from flask import Blueprint, Response, current_app, jsonify, render_template, url_for
from werkzeug.wrappers import Response as BaseResponse

from core.errors import NotFound
from vmm import guest_routes, openapi, routes

blueprint = Blueprint("openapi", __name__, url_prefix="/api-docs")

# Swagger UI draws its icons from data: addresses.
CSP = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; "
    "connect-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
)


@dataclass(frozen=True)
class Document:
    """One interface: its title on the page, and how its document is made."""

    title: str
    make: Callable[[], dict[str, Any]]


def _vmm() -> dict[str, Any]:
    return openapi.document(("/prpc", routes.service), ("/guest", guest_routes.service))


VMM = Document("VM manager", functools.cache(_vmm))


def documents() -> dict[str, Document]:
    """All that the page offers, by name; the first is also /api-docs/openapi.json, and opens first."""
    found: dict[str, Document] = current_app.extensions["documents"]
    return found


@blueprint.get("/")
@blueprint.get("/docs")
def page() -> Response:
    """The page."""
    offered = [
        {"name": each.title, "url": url_for("openapi.document", name=name)}
        for name, each in documents().items()
    ]
    answer = Response(render_template("api_docs.html", documents=offered))
    answer.headers["Content-Security-Policy"] = CSP
    answer.headers["Referrer-Policy"] = "no-referrer"
    return answer


@blueprint.get("/openapi.json", defaults={"name": "vmm"})
@blueprint.get("/<name>.json")
def document(name: str) -> BaseResponse:
    """One document."""
    if name not in documents():
        raise NotFound(f"there is no document {name[:64]}: not found")
    return jsonify(documents()[name].make())
