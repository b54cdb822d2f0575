"""The OpenAPI document and its page: complete, valid, offline, for callers alone."""

from __future__ import annotations

import hashlib
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flask.testing import FlaskClient

from app import create_app
from core import prpc
from core.config import AuthConfig, Config
from core.prpc import Service
from image.registry import Image
from models.base import Database
from vmm import guest_routes, openapi, routes
from vmm.host import Host

VENDORED = Path(__file__).parents[3] / "static/swagger-ui"
SERVICES = [("/prpc", routes.service), ("/guest", guest_routes.service)]


@pytest.fixture
def document(client: FlaskClient) -> dict[str, Any]:
    answer = client.get("/api-docs/openapi.json")
    assert answer.content_type == "application/json"
    assert answer.json is not None
    return answer.json


def test_every_call_is_described(document: dict[str, Any]) -> None:
    wanted = {f"{prefix}/{name}" for prefix, service in SERVICES for name in service.methods}

    assert document["openapi"] == "3.1.0"
    assert set(document["paths"]) == wanted | {"/logs"}
    for path, operations in document["paths"].items():
        (operation,) = operations.values()
        assert operation["summary"], path
        assert {"200", "400", "401", "404", "500"} <= set(operation["responses"])
        for status, answer in operation["responses"].items():
            if status != "200":
                schema = answer["content"]["application/json"]["schema"]
                assert schema == {"$ref": "#/components/schemas/Refusal"}
    assert set(document["components"]["schemas"]["Refusal"]["properties"]) == {"message", "error"}


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    def references(value: object) -> set[str]:
        if isinstance(value, dict):
            own = {value["$ref"]} if "$ref" in value else set()
            return own.union(*map(references, value.values()))
        return set().union(*map(references, value)) if isinstance(value, list) else set()

    names = {f"#/components/schemas/{name}" for name in document["components"]["schemas"]}
    assert references(document["paths"]) <= names
    assert references(document["components"]) <= names


@pytest.mark.parametrize(("prefix", "service"), SERVICES)
def test_every_example_is_a_message_of_its_call(
    document: dict[str, Any], prefix: str, service: Service
) -> None:
    for name, method in service.methods.items():
        body = document["paths"][f"{prefix}/{name}"]["post"]["requestBody"]
        example = body["content"]["application/json"]["example"]

        prpc.load(method.request, example)
        assert set(example) <= set(prpc.instance(method.request).fields), name
        if prefix == "/prpc" and name in openapi.ANSWERS:
            known = set(prpc.instance(method.response).fields)
            assert set(openapi.ANSWERS[name]) == known, name


@pytest.mark.parametrize("path", ["/api-docs/", "/api-docs/docs"])
def test_the_page_needs_nothing_from_elsewhere(client: FlaskClient, path: str) -> None:
    page = client.get(path)

    assert page.status_code == 200
    policy = page.headers["Content-Security-Policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    loaded = re.findall(r'(?:src|href)="([^"]+)"', page.text)
    assert len(loaded) == 4
    for each in loaded:
        assert client.get(each).status_code == 200, each
    assert "/api-docs/openapi.json" in page.text
    named = client.get("/api-docs/vmm.json", follow_redirects=True)
    assert named.json == client.get("/api-docs/openapi.json").json
    assert client.get("/api-docs/other.json").status_code == 404
    assert client.get("/api-docs").headers["Location"].endswith("/api-docs/")


def test_page_and_document_are_for_callers(
    config: Config, database: Database, host: Host, image: Image
) -> None:
    app = create_app(replace(config, auth=AuthConfig(True, ("t",))), host)
    browser = app.test_client()
    paths = ["/api-docs/", "/api-docs/docs", "/api-docs/openapi.json"]

    for path in paths:
        refusal = browser.get(path)
        assert refusal.status_code == 401
        assert refusal.json is not None
        assert set(refusal.json) == {"message", "error"}
        assert browser.get(path, headers={"Authorization": "Bearer t"}).status_code == 200
    browser.post("/sign-in", data={"token": "t"})
    assert [browser.get(path).status_code for path in paths] == [200] * 3
    app.extensions["vms"].database.engine.dispose()


def test_the_vendored_files_are_those_that_were_taken() -> None:
    text = (VENDORED / "VENDORED.md").read_text()
    listed = dict(re.findall(r"^\| `([\w.-]+)` \| `([0-9a-f]{64})` \|$", text, re.MULTILINE))
    present = {path.name for path in VENDORED.iterdir()} - {"VENDORED.md", "start.js"}

    assert set(listed) == present
    assert "5.35.0" in text
    for name, digest in listed.items():
        assert hashlib.sha256((VENDORED / name).read_bytes()).hexdigest() == digest, name
