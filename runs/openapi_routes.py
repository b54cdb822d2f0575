"""The document of the runs interface, and the way to the page that shows it."""

from __future__ import annotations

from typing import Any

from flask import Flask, current_app, jsonify, redirect

from rest import documents
from rest.access import public
from rest.blueprint import Blueprint
from runs import fleet_routes, proxy_routes, routes, run_routes

blueprint = Blueprint("runs_document", __name__)
BLUEPRINTS = (
    routes.server,
    routes.users,
    routes.projects,
    fleet_routes.blueprint,
    run_routes.blueprint,
    run_routes.absent,
)
# The first that has a path answers: these stand before the wider prefixes of other surfaces.
PREFIXES = (
    "/api/project", "/api/projects", "/api/users", "/api/runs", "/api/fleets", "/api/instances", "/api/events",
    "/api/server", "/api/backends", "/api/volumes", "/api/auth/list_providers", "/api/auth/get_next_redirect",
    "/api/docs", "/openapi.json", "/healthcheck", "/proxy",
)  # fmt: skip

for each in BLUEPRINTS:
    each.before_request(routes.check_version)


def register(app: Flask, version: str) -> documents.Documented:
    """Registers the surface with an application."""
    about = "Projects, fleets and runs on this host, as dstack's clients know them."
    api = documents.register(app, "runs", "Casemate runs", version, about, BLUEPRINTS)
    app.register_blueprint(blueprint)
    app.register_blueprint(proxy_routes.blueprint)
    return api


@blueprint.get("/openapi.json")
@public
def document() -> Any:
    """The document."""
    return jsonify(documents.document(current_app.extensions["runs_api"]))


@blueprint.get("/api/docs")
@public
def page() -> Any:
    """The page of all documents."""
    return redirect("/api-docs/")
