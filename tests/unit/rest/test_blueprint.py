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


class Refusal(ma.Schema):
    why = ma.fields.String()


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
    app.extensions["things"] = register(
        app, "things", "/things.json", "Things", "1", "About things.", [blueprint], Refusal
    )
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


def test_a_refusal_has_its_surfaces_form_in_the_document() -> None:
    shown = document(application().extensions["things"])

    (error,) = shown["components"]["responses"]["DEFAULT_ERROR"]["content"].values()
    assert error["schema"] == {"$ref": "#/components/schemas/Refusal"}


@pytest.mark.parametrize("sent", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_a_body_that_is_not_called_json_is_refused_with_that_reason(sent: str) -> None:
    with pytest.raises(BadArguments, match="Content-Type: application/json") as refused:
        application().test_client().post("/api/things/", data=b'{"name": "a"}', content_type=sent)

    assert not refused.value.malformed


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b"[" * 10_000 + b"]" * 10_000, "must be an object"),
        (b'{"name": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested too deeply"),
        (b"[" + b"{}," * 1_000_000 + b"{}]", "must be an object"),
        (b'{"sizes": [' + b"{}," * 200_000 + b"{}]}", "more than 100000 values"),
    ],
)
def test_a_body_without_bounds_is_refused_before_it_is_decoded(body: bytes, why: str) -> None:
    with pytest.raises(BadArguments, match=why):
        application().test_client().post("/api/things/", data=body, content_type="application/json")


def test_a_document_is_served_to_everybody_at_its_path() -> None:
    app = application()

    assert is_public(app.view_functions["things_document.show"])
    shown = app.test_client().get("/things.json").get_json()
    assert shown["info"]["title"] == "Casemate: Things"
    assert "/api/things/" in shown["paths"]
