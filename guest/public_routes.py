"""Port 29343: the pages of a SecretVM, by GET alone, as text or JSON and with `.html` for people.

Source: secretvm.md section 8, guest side.
"""

from __future__ import annotations

import json

from flask import Flask, Response, render_template, request
from werkzeug.exceptions import MethodNotAllowed

from core.errors import CasemateError, Forbidden, status_of
from guest import routes
from guest.public import Content, Pages, Query, as_text

WELL_KNOWN = "/.well-known"


def create_app(pages: Pages) -> Flask:
    """The application of the listener."""
    app = routes.new_app("pages")
    app.register_error_handler(CasemateError, _refusal)

    @app.before_request
    def look_only() -> None:
        if request.method != "GET":
            raise MethodNotAllowed(["GET"])

    @app.after_request
    def let_browsers_in(response: Response) -> Response:
        response.headers["Access-Control-Allow-Origin"] = "*"
        response.headers["X-Content-Type-Options"] = "nosniff"
        return response

    @app.get("/<name>")
    @app.get(f"{WELL_KNOWN}/<name>")
    def page(name: str) -> Response:
        bare = name.removesuffix(".html")
        shown = pages.page(bare, _query())
        return _answer(shown) if bare == name else _html(bare, shown)

    return app


def _query() -> Query:
    scheme, _, credential = request.headers.get("Authorization", "").partition(" ")
    bearer = credential.strip() if scheme.lower() == "bearer" else ""
    token = bearer or request.headers.get("X-Dev-Token", "") or request.args.get("token", "")
    return Query.of(token, request.args.get("service", ""), request.args.get("lines", ""))


def _answer(content: Content) -> Response:
    if isinstance(content, str):
        return Response(content, content_type="text/plain; charset=utf-8")
    return routes.answer_json(content)


def _html(name: str, content: Content) -> Response:
    return Response(render_template("page.html", name=name, text=as_text(content)))


def _refusal(error: CasemateError) -> Response:
    body = {"error": error.message, **error.details}
    if isinstance(error, Forbidden):
        body["details"] = "send it as Authorization: Bearer, X-Dev-Token or ?token="
    return Response(json.dumps(body), status_of(error), mimetype="application/json")
