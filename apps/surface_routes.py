"""The apps interface as one surface: its blueprints, their document, and what they stand on."""

from __future__ import annotations

from flask import Flask

from apps import answers, cvm_routes, host_routes, log_routes, routes, schemas, update_routes
from apps.allowlist import Allowlist
from apps.chains import Chains
from apps.service import Apps
from apps.versions import NEWEST
from rest import documents

ABOUT = (
    "The Phala Cloud interface of this host. Send a key as `X-API-Key` or as a bearer token, and the version "
    "that you speak as `X-Phala-Version`; the forms of answers are those of the newest."
)
PREFIXES = (routes.PREFIX, routes.BARE_PATH)
BLUEPRINTS = (
    routes.blueprint,
    cvm_routes.blueprint,
    update_routes.blueprint,
    host_routes.blueprint,
    log_routes.blueprint,
)


def register(app: Flask) -> None:
    """Adds the interface to the application, whose services are there already."""
    service = Apps(app.extensions["vms"], app.extensions["accounts"])
    app.extensions["apps"] = service
    app.extensions["allowlist"] = Allowlist(service, Chains.of(service.config.apps.chains))
    api = documents.register(
        app, "apps", "/api/v1/openapi.json", "Apps", NEWEST, ABOUT, BLUEPRINTS, schemas.Refusal
    )
    # Of a mapping the views can name its form alone.
    api.spec.components.schema("Status", schema=answers.Status)
    app.register_blueprint(routes.blueprint, name="bare_apps", url_prefix="/")


for blueprint in BLUEPRINTS:
    blueprint.after_request(routes.tell_version)
