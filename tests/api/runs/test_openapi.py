"""The document of the runs interface."""

from __future__ import annotations

import jsonschema_rs
import pytest
from flask import Flask
from flask.testing import FlaskClient

from runs import run_routes
from tests.api.runs.conftest import Api, Host, described

# Of the forms in a document of OpenAPI 3.1.
DIALECT = "https://json-schema.org/draft/2020-12/schema"


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


@pytest.mark.parametrize(
    "path", ["/openapi.json", "/api/openapi.json", "/api/v1/openapi.json", "/api-docs/openapi.json"]
)
def test_a_generator_of_clients_can_read_every_form(client: FlaskClient, path: str) -> None:
    found = client.get(path).get_json()

    def arrays(value: object) -> list[dict[str, object]]:
        if isinstance(value, list):
            return [each for inner in value for each in arrays(inner)]
        if not isinstance(value, dict):
            return []
        kinds = value.get("type", [])
        own = [value] if kinds == "array" or isinstance(kinds, list) and "array" in kinds else []
        return own + [each for inner in value.values() for each in arrays(inner)]

    for form in found["components"]["schemas"].values():
        jsonschema_rs.meta.validate({"$schema": DIALECT, **form})
    assert all("items" in each for each in arrays(found))


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("/openapi.json", "Casemate: Runs"),
        ("/api/openapi.json", "Casemate: SecretVM"),
        ("/api/v1/openapi.json", "Casemate: Apps"),
    ],
)
def test_the_document_of_each_tenant_interface_is_where_its_calls_are(
    client: FlaskClient, path: str, title: str
) -> None:
    found = client.get(path).get_json()

    assert found["info"]["title"] == title
    assert found["paths"]


@pytest.mark.parametrize(
    ("path", "form"),
    [
        ("/api", {"statusCode", "message"}),
        ("/api/xyz", {"statusCode", "message"}),
        ("/api/auth/nope", {"statusCode", "message"}),
        ("/api/v1/nope", {"detail"}),
        ("/api/project/main/nope", {"detail"}),
        ("/api/files/nope", {"detail"}),
        ("/proxy/nope", {"detail"}),
    ],
)
def test_an_unknown_path_is_refused_in_the_form_of_its_surface(
    client: FlaskClient, path: str, form: set[str]
) -> None:
    answer = client.get(path)

    assert answer.status_code == 404
    assert answer.get_json().keys() == form


def test_the_page_leads_to_all_documents(client: FlaskClient) -> None:
    assert client.get("/api/docs").headers["Location"] == "/api-docs/"


def test_every_call_answers_as_the_document_says(
    client: FlaskClient, api: Api, background: Host
) -> None:
    # Api compares each answer, and each request that is taken, with the document.
    api.project = "team"
    api.ask("/api/server/get_info")
    api.ask("/api/auth/list_providers")
    api.refusal("/api/auth/get_next_redirect", {})
    _people(api)
    _fleets_and_runs(api)
    _what_there_is_none_of(api)
    for path in ("/healthcheck", "/api/project/team/metrics/job/long", "/proxy/models/team/models"):
        headers = {"Authorization": f"Bearer {api.token}"}
        described(client).check(client.get(path, headers=headers))

    api.post("runs/stop", {"runs_names": ["long"], "abort": True})
    known = described(client)
    answered = {(method, path) for method, path, status in known.seen if status == 200}
    refused = {path for _, path, status in known.seen if status == 400}
    wanted = {
        (method, path)
        for path, operations in known.document["paths"].items()
        for method, operation in operations.items()
        if method != "parameters" and "200" in operation["responses"]
    }
    assert wanted <= answered
    assert set(known.document["paths"]) <= refused | {path for _, path in answered}


def _people(api: Api) -> None:
    name = {"username": "alice"}
    key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAINFlKtX5iWrNBoR3mSvcC3Jp4cmbp8uXMzlQuFNgcnsd me"
    api.ask("/api/users/create", {**name, "global_role": "user"})
    api.ask("/api/users/update", {**name, "global_role": "user", "email": "a@example.org"})
    for call in ("get_user", "refresh_token", "refresh_ssh_key"):
        api.ask(f"/api/users/{call}", name)
    for more in ({}, {"return_total_count": True}):
        api.ask("/api/users/list", more)
        api.ask("/api/projects/list", more)
    api.ask("/api/users/get_my_user")
    added = api.ask("/api/users/public_keys/add", {"key": key})
    api.ask("/api/users/public_keys/list")
    api.ask("/api/users/public_keys/delete", {"ids": [added["id"]]})
    for project in ("team", "other"):
        api.ask("/api/projects/create", {"project_name": project})
    api.ask("/api/projects/delete", {"projects_names": ["other"]})
    api.ask("/api/projects/list_only_no_fleets")
    api.ask("/api/projects/team/get")
    api.ask("/api/projects/team/update", {"is_public": True})
    for call in ("add_members", "set_members"):
        members = [{**name, "project_role": "user"}]
        api.ask(f"/api/projects/team/{call}", {"members": members})
    api.ask("/api/projects/team/remove_members", {"usernames": ["alice"]})
    api.ask("/api/users/delete", {"users": ["alice"]})


def _fleets_and_runs(api: Api) -> None:
    resources = {"cpu": "1..", "memory": "1GB..", "disk": "1GB.."}
    fleet = {"type": "fleet", "nodes": "0..2", "idle_duration": "off", "resources": resources}
    api.fleet("default")
    api.ask("fleets/get_plan", {"spec": {"configuration": fleet, "profile": {}}})
    service = {
        "type": "service", "port": "80:8000", "commands": ["true"], "resources": resources, "user": "1000:app",
        "env": ["A=b"], "retry": {"on_events": ["error"], "duration": "1h"}, "max_duration": "2h", "priority": 3,
        "probes": [{"type": "http", "url": "/", "timeout": "5s"}], "fleets": ["default", {"name": "spare"}],
    }  # fmt: skip
    environment = {
        "type": "dev-environment",
        "ide": "vscode",
        "inactivity_duration": "2h",
        "resources": resources,
    }
    scratch = {"type": "task", "image": "scratch", "commands": [":"], "user": "root", "retry": True}
    for each in (service, environment, scratch):
        api.ask("runs/get_plan", {"run_spec": {"configuration": each}, "max_offers": 3})
    api.ask("gpus/list", {"run_spec": {"configuration": scratch}})
    api.ask("repos/init", {"repo_id": "none", "repo_info": {"repo_type": "virtual"}})
    api.run("echo over", name="over")
    over = api.until("over", "done")
    query = {"run_name": "over", "job_submission_id": over["latest_job_submission"]["id"]}
    assert api.ask("logs/poll", query)["logs"]
    api.run("sleep 60", name="long", ports=["*:8000", 9000])
    running = api.until("long", "running")
    api.ask("runs/get_plan", {"run_spec": running["run_spec"]})
    api.fleet("spare", nodes={"min": 0, "max": 1})
    again = {"run_spec": running["run_spec"], "current_resource": running}
    api.ask("runs/apply", {"plan": again, "force": False})
    for more in ({}, {"include_jobs": False}, {"only_active": True, "job_submissions_limit": 1}):
        assert api.ask("/api/runs/list", more)
    fleets = api.ask("fleets/list")
    same = next(each for each in fleets if each["name"] == "default")
    api.ask("fleets/get", {"name": "default"})
    plan = {"spec": same["spec"], "current_resource": same}
    api.ask("fleets/get_plan", {"spec": same["spec"]})
    api.ask("fleets/apply", {"plan": plan, "force": False})
    api.ask("/api/fleets/list", {"only_active": True})
    (instance, *_) = api.ask("/api/instances/list", {"only_active": True})
    api.ask("instances/get", {"id": instance["id"]})
    number = {"fleet_name": instance["fleet_name"], "instance_num": instance["instance_num"]}
    api.ask("instances/get_instance_health_checks", number)
    api.ask("fleets/delete_instances", {"name": "spare", "instance_nums": [7]})
    api.ask("fleets/delete", {"names": ["spare"]})
    api.ask("/api/events/list", {"limit": 100})
    api.ask("runs/delete", {"runs_names": ["over"]})
    api.ask("runs/stop", {"runs_names": ["nobody"], "abort": False})


def _what_there_is_none_of(api: Api) -> None:
    for path in run_routes.LISTS:
        assert api.ask(f"/api/{path}".replace("<project_name>", "team"), {}) == []
    for path in run_routes.REFUSED:
        path = path.replace("<project_name>", "team").replace("<backend_name>", "aws")
        assert api.refusal(path, {})[0] == "error"
