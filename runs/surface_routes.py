"""The runs interface as one surface: its blueprints, their document, and what they stand on."""

from __future__ import annotations

from typing import Any

from flask import Flask, redirect

from rest import documents
from rest.access import public
from rest.blueprint import Blueprint
from runs import answers, fleet_routes, proxy_routes, routes, run_routes
from runs.service import Runs

# The first that has a path answers: these stand before the wider prefixes of other surfaces.
PREFIXES = (
    "/api/project", "/api/projects", "/api/users", "/api/runs", "/api/fleets", "/api/instances", "/api/events",
    "/api/server", "/api/backends", "/api/volumes", "/api/auth/list_providers", "/api/auth/get_next_redirect",
    "/api/files", "/api/sshproxy", "/api/docs", "/openapi.json", "/healthcheck", "/proxy",
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
blueprint = Blueprint("runs_page", __name__)

for each in BLUEPRINTS:
    each.before_request(routes.check_version)


def register(app: Flask, version: str) -> None:
    """Adds the interface to the application, whose services are there already."""
    vms = app.extensions["vms"]
    app.extensions["runs"] = Runs.of(vms.config, vms.database)
    documents.register(
        app, "runs", "/openapi.json", "Runs", version, ABOUT, BLUEPRINTS, answers.Refusal
    )
    app.register_blueprint(blueprint)
    app.register_blueprint(proxy_routes.blueprint)


@blueprint.get("/api/docs")
@public
def page() -> Any:
    """The page of all documents."""
    return redirect("/api-docs/")


refusal = routes.refusal
