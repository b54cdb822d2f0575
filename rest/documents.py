"""The OpenAPI document of a REST surface: made by flask-smorest from what its views declare."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import flask_smorest
from flask import Flask, Response, jsonify
from marshmallow import Schema

from rest.access import public
from rest.blueprint import Blueprint
from vmm.openapi_routes import Document

# In which header a credential comes.
SCHEMES = {
    "bearer": {"type": "http", "scheme": "bearer"},
    "key": {"type": "apiKey", "in": "header", "name": "x-api-key"},
}


class Documented(flask_smorest.Api):  # type: ignore[misc] # flask-smorest has no types
    """The blueprints of one surface, with their document; `refusal` is the form of every refusal."""

    def __init__(self, app: Flask, refusal: type[Schema], **kwargs: Any) -> None:
        self.ERROR_SCHEMA = refusal
        super().__init__(app, **kwargs)

    def _register_error_handlers(self) -> None:
        """None: the application has one handler, which knows every surface's body."""


def register(
    app: Flask,
    name: str,
    path: str,
    title: str,
    version: str,
    about: str,
    blueprints: Sequence[Blueprint],
    refusal: type[Schema],
) -> Documented:
    """Registers the blueprints of a surface with the application, and their document at a path and on the page of all."""
    prefix = name.upper()
    app.config[f"{prefix}_API_TITLE"] = f"Casemate: {title}"
    app.config[f"{prefix}_API_VERSION"] = version
    app.config[f"{prefix}_OPENAPI_VERSION"] = "3.1.0"
    api = Documented(
        app,
        refusal,
        config_prefix=prefix,
        spec_kwargs={
            "info": {"description": about},
            "components": {"securitySchemes": SCHEMES},
            "security": [{scheme: []} for scheme in SCHEMES],
        },
    )
    for told in (alternatives, portable_pattern):
        api.ma_plugin.converter.add_attribute_function(told)
    for blueprint in blueprints:
        api.register_blueprint(blueprint)
    made = functools.cache(lambda: document(api))
    app.extensions.setdefault("documents", {})[name] = Document(title, made)
    app.register_blueprint(_at(name, path, made))
    return api


def _at(name: str, path: str, made: Callable[[], dict[str, Any]]) -> Blueprint:
    blueprint = Blueprint(f"{name}_document", __name__)

    @blueprint.get(path)
    @public
    def show() -> Response:
        """The document, for everybody."""
        return jsonify(made())

    return blueprint


def alternatives(converter: Any, field: Any, ret: dict[str, Any]) -> dict[str, Any]:
    """What a field takes that has several forms: objects of its `shapes`, or values of the types in `kinds`."""
    if not hasattr(field, "shapes"):
        return {}
    for said in ("$ref", "anyOf"):
        ret.pop(said, None)
    kinds = [*field.kinds, *(["null"] if field.allow_none else [])]
    shapes = [converter.resolve_nested_schema(each) for each in field.shapes]
    return {"anyOf": [*shapes, *({"type": kind} for kind in kinds)]}


def portable_pattern(converter: Any, field: Any, ret: dict[str, Any]) -> dict[str, Any]:
    """A pattern as JavaScript writes it too, which has no \\Z."""
    return {"pattern": ret["pattern"].replace(r"\Z", "$")} if "pattern" in ret else {}


def document(api: Documented) -> dict[str, Any]:
    """The document of a surface."""
    found: dict[str, Any] = api.spec.to_dict()
    return found
