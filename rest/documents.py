"""The OpenAPI document of a REST surface: made by flask-smorest from what its views declare."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import flask_smorest
from flask import Flask

from rest.blueprint import Blueprint

# In which header a credential comes.
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


class Documented(flask_smorest.Api):  # type: ignore[misc] # flask-smorest has no types
    """The blueprints of one surface, with their document."""

    def _register_error_handlers(self) -> None:
        """None: the application has one handler, which knows every surface's body."""


def register(
    app: Flask, name: str, title: str, version: str, about: str, blueprints: Sequence[Blueprint]
) -> Documented:
    """Registers the blueprints of a surface with the application and in the surface's document."""
    prefix = name.upper()
    app.config[f"{prefix}_API_TITLE"] = title
    app.config[f"{prefix}_API_VERSION"] = version
    app.config[f"{prefix}_OPENAPI_VERSION"] = "3.1.0"
    api = Documented(
        app,
        config_prefix=prefix,
        spec_kwargs={
            "info": {"description": about},
            "components": {"securitySchemes": SCHEMES},
            "security": [{scheme: []} for scheme in SCHEMES],
        },
    )
    for blueprint in blueprints:
        api.register_blueprint(blueprint)
    return api


def document(api: Documented) -> dict[str, Any]:
    """The document of a surface."""
    found: dict[str, Any] = api.spec.to_dict()
    return found
