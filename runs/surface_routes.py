"""The runs interface as one surface: its blueprints, their document, and what they stand on."""

from __future__ import annotations

import functools
from typing import Any

from flask import Flask, current_app, jsonify, redirect

from rest import documents
from rest.access import public
from rest.blueprint import Blueprint
from runs import fleet_routes, proxy_routes, routes, run_routes
from runs.service import Runs
from vmm.openapi_routes import Document

# The first that has a path answers: these stand before the wider prefixes of other surfaces.
PREFIXES = (
    "/api/project", "/api/projects", "/api/users", "/api/runs", "/api/fleets", "/api/instances", "/api/events",
    "/api/server", "/api/backends", "/api/volumes", "/api/auth/list_providers", "/api/auth/get_next_redirect",
    "/api/docs", "/openapi.json", "/healthcheck", "/proxy",
)  # fmt: skip
ABOUT = (
    "Projects, fleets and runs on this host, as dstack's clients know them. Send a token as "
    "`Authorization: Bearer`."
)
BLUEPRINTS = (
    routes.server,
    routes.users,
    routes.projects,
    fleet_routes.blueprint,
    run_routes.blueprint,
    run_routes.absent,
)
blueprint = Blueprint("runs_document", __name__)

for each in BLUEPRINTS:
    each.before_request(routes.check_version)


def register(app: Flask, version: str) -> None:
    """Adds the interface to the application, whose services are there already."""
    vms = app.extensions["vms"]
    app.extensions["runs"] = Runs.of(vms.config, vms.database)
    api = documents.register(app, "runs", "Casemate: runs", version, ABOUT, BLUEPRINTS)
    made = functools.cache(lambda: documents.document(api))
    app.extensions["documents"]["runs"] = Document("Runs", made)
    app.register_blueprint(blueprint)
    app.register_blueprint(proxy_routes.blueprint)


@blueprint.get("/openapi.json")
@public
def document() -> Any:
    """The document, where dstack's clients look for it."""
    return jsonify(current_app.extensions["documents"]["runs"].make())


@blueprint.get("/api/docs")
@public
def page() -> Any:
    """The page of all documents."""
    return redirect("/api-docs/")


refusal = routes.refusal
