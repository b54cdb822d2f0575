from __future__ import annotations

from typing import Any

import marshmallow as ma
import pytest
from flask import Flask

from rest.access import is_public, public
from rest.blueprint import BadArguments, Blueprint
from rest.documents import document, register


class Resources(ma.Schema):
    cpu = ma.fields.Integer(required=True)


class Wanted(ma.Schema):
    name = ma.fields.String(required=True)
    sizes = ma.fields.List(ma.fields.Nested(Resources))


def application() -> Flask:
    blueprint = Blueprint("things", __name__, url_prefix="/api/things")

    @blueprint.post("/")
    @blueprint.arguments(Wanted)
    @blueprint.response(200, Wanted)
    def make(wanted: dict[str, Any]) -> dict[str, Any]:
        """Makes a thing."""
        return wanted

    @blueprint.get("/")
    @blueprint.response(200, Wanted(many=True))
    @public
    def show() -> list[Any]:
        """Shows all things."""
        return []

    app = Flask(__name__)
    app.config["PROPAGATE_EXCEPTIONS"] = True
    app.extensions["things"] = register(app, "things", "Things", "1", "About things.", [blueprint])
    return app


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({}, {"name": ["Missing data for required field."]}),
        ({"name": "a", "more": 1}, {"more": ["Unknown field."]}),
        (
            {"name": "a", "sizes": [{"cpu": 1}, {"cpu": "x"}]},
            {"sizes.1.cpu": ["Not a valid integer."]},
        ),
    ],
)
def test_a_bad_field_is_refused_by_its_whole_name(
    body: dict[str, Any], fields: dict[str, Any]
) -> None:
    with pytest.raises(BadArguments) as refused:
        application().test_client().post("/api/things/", json=body)

    assert (refused.value.place, refused.value.fields) == ("body", fields)
    assert next(iter(fields)) in refused.value.message


@pytest.mark.parametrize("body", [b"{", b"", b"\xff", b"[1]"])
def test_a_body_that_is_no_object_is_refused(body: bytes) -> None:
    with pytest.raises(BadArguments) as refused:
        application().test_client().post("/api/things/", data=body, content_type="application/json")

    assert refused.value.malformed == (body in (b"{", b"\xff"))


def test_a_public_view_is_marked_and_documented_as_such() -> None:
    app = application()

    assert is_public(app.view_functions["things.show"])
    assert not is_public(app.view_functions["things.make"])
    shown = document(app.extensions["things"])
    assert shown["paths"]["/api/things/"]["get"]["security"] == []
    assert "security" not in shown["paths"]["/api/things/"]["post"]
    assert shown["security"] == [{"bearer": []}, {"key": []}]
