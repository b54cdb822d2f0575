"""The document of the runs interface."""

from __future__ import annotations

from flask import Flask
from flask.testing import FlaskClient


def test_the_document_has_every_call_with_its_request(app: Flask, client: FlaskClient) -> None:
    found = client.get("/openapi.json").get_json()

    paths = {
        rule.rule.replace("<", "{").replace(">", "}")
        for rule in app.url_map.iter_rules()
        if rule.endpoint.split(".")[0] in ("runs", "runs_fleets", "runs_users", "runs_projects")
    }
    assert found["openapi"].startswith("3.1")
    assert paths <= found["paths"].keys()
    applied = found["paths"]["/api/project/{project_name}/runs/apply"]["post"]
    assert applied["requestBody"]["content"]["application/json"]["schema"]["$ref"].endswith(
        "ApplyRunPlan"
    )
    assert found["components"]["schemas"]["ListRuns"]["properties"]["limit"]["type"] == "integer"
    assert "bearer" in found["components"]["securitySchemes"]


def test_every_reference_of_the_document_leads_somewhere(client: FlaskClient) -> None:
    found = client.get("/openapi.json").get_json()

    def references(value: object) -> list[str]:
        if isinstance(value, dict):
            own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
            return own + [each for inner in value.values() for each in references(inner)]
        if isinstance(value, list):
            return [each for inner in value for each in references(inner)]
        return []

    named = references(found)
    assert named
    for each in named:
        _, kind, group, name = each.split("/")
        assert name in found[kind][group]


def test_the_page_leads_to_all_documents(client: FlaskClient) -> None:
    assert client.get("/api/docs").headers["Location"] == "/api-docs/"
