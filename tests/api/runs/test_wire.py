"""The wire rules of the runs interface: who is let in, how it refuses, and that it knows what clients send."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from accounts import directory
from accounts.roles import ProjectRole
from models.base import Database
from tests.api.runs.conftest import Api

RECORDED = Path(__file__).parents[4] / "shared/data/dstackai"
recorded = pytest.mark.skipif(not RECORDED.is_dir(), reason="the recorded exchanges are not here")
TASK = {"type": "task", "commands": ["true"]}
PLAN = {"plan": {"run_spec": {"configuration": TASK}}, "force": False}
# What two servers must not have in common.
OWN = {
    "id", "project_id", "submitted_at", "last_processed_at", "created_at", "recorded_at", "ssh_public_key",
    "ssh_key_pub", "commands", "image_name", "backend", "backends", "price", "max_price", "offers",
    "total_offers", "max_offer_price", "actor_user_id", "message", "cost", "vm_id",
}  # fmt: skip


def exchanges(name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((RECORDED / f"{name}.json").read_text())["exchanges"]
    return found


def replay(api: Api, exchange: dict[str, Any]) -> Any:
    """Sends a recorded request with our own token."""
    given = exchange["request_headers"]
    headers = {"X-API-VERSION": given["x-api-version"]} if "x-api-version" in given else {}
    token = given.get("authorization", "").replace("Bearer ADMIN-TOKEN", f"Bearer {api.token}")
    if token:
        headers["Authorization"] = token
    return api.client.post(exchange["path"], json=exchange["request"], headers=headers)


def differences(ours: Any, theirs: Any, name: str = "") -> list[str]:
    """The names of what an answer lacks or has otherwise; it may have more."""
    if isinstance(theirs, dict) and isinstance(ours, dict):
        return [
            each
            for key, value in theirs.items()
            if key not in OWN
            for each in (
                differences(ours[key], value, f"{name}.{key}") if key in ours else [f"{name}.{key}"]
            )
        ]
    if isinstance(theirs, list) and isinstance(ours, list) and ours and theirs:
        return differences(ours[0], theirs[0], f"{name}[0]")
    return [] if ours == theirs else [f"{name}: {ours!r} instead of {theirs!r}"]


@recorded
@pytest.mark.parametrize("number", range(10))
def test_an_error_is_the_recorded_one(api: Api, number: int) -> None:
    exchange = exchanges("errors")[number]

    answer = replay(api, exchange)

    assert answer.status_code == exchange["status"]
    assert answer.get_json() == exchange["response"]


@recorded
def test_answers_have_what_the_recorded_ones_have(api: Api) -> None:
    for name in (
        "project-add", "fleet-list-empty", "fleet-apply", "fleet-get", "fleet-get-missing", "fleet-apply-unchanged",
        "offer", "offer-fleet", "run-apply-plan-only", "run-apply-detached",
    ):  # fmt: skip
        for exchange in exchanges(name):
            answer = replay(api, exchange)

            assert answer.status_code == exchange["status"], (name, answer.text)
            found = differences(answer.get_json(), exchange["response"])
            assert found == [], (name, exchange["path"])


@recorded
def test_every_call_of_the_interface_has_a_path(app: Flask) -> None:
    index = json.loads((RECORDED / "api-index.json").read_text())["paths"]
    known = {
        f"{method} {rule.rule.replace('<path:', '<').replace('<', '{').replace('>', '}')}"
        for rule in app.url_map.iter_rules()
        for method in rule.methods or ()
    }
    later = (
        "/metrics",
        "/proxy/",
        "/api/files/",
        "/api/sshproxy/",
        "/instances/get_instance_health",
    )
    missing = [path for path in index if path not in known and not any(x in path for x in later)]

    assert missing == []


@pytest.mark.parametrize("path", ["runs/get_plan", "runs/apply", "fleets/get_plan", "fleets/apply"])
@pytest.mark.parametrize("body", ["{", "[1,", "\xff", "{'a': 1}"])
def test_what_is_no_json_is_told_so(api: Api, path: str, body: str) -> None:
    answer = api.client.post(
        f"/api/project/main/{path}",
        data=body.encode("latin-1"),
        headers={"Authorization": f"Bearer {api.token}", "Content-Type": "application/json"},
    )

    assert answer.status_code == 422
    assert answer.get_json()["detail"][0]["type"] == "json_invalid"


@pytest.mark.parametrize(
    "body", [[], 1, "x", [[]], {"run_spec": []}, {"run_spec": {"configuration": 1}}]
)
def test_a_body_of_another_form_is_a_bad_request(api: Api, body: Any) -> None:
    answer = api.post("runs/get_plan", body)

    assert answer.status_code == 422
    assert {"type", "loc", "msg", "input"} <= answer.get_json()["detail"][0].keys()


def test_a_bad_value_is_named_with_its_place_and_itself(api: Api) -> None:
    spec = {"configuration": {**TASK, "resources": {"memory": "8..4"}, "nodes": "x"}}

    rows = api.post("runs/get_plan", {"run_spec": spec}).get_json()["detail"]

    found = {(row["loc"][-1], row["type"], row["input"]) for row in rows}
    assert found == {("memory", "value_error", "8..4"), ("nodes", "int_parsing", "x")}
    assert all(row["loc"][:4] == ["body", "run_spec", "configuration", "task"] for row in rows)


@pytest.mark.parametrize(
    ("version", "status"),
    [
        ("0.22.5", 200),
        ("0.22.99", 200),
        ("0.20.1", 200),
        ("0.23.0", 400),
        ("1.0.0", 400),
        ("new", 400),
        ("0.22.5rc1", 200),
    ],
)
def test_a_newer_client_is_refused(api: Api, version: str, status: int) -> None:
    assert api.post("/api/users/get_my_user", **{"X-API-VERSION": version}).status_code == status


def test_what_is_open_needs_no_token(client: FlaskClient) -> None:
    assert client.post("/api/server/get_info").get_json() == {"server_version": "0.22.5"}
    assert client.get("/healthcheck").status_code == 200
    assert client.get("/openapi.json").status_code == 200
    assert client.post("/api/auth/list_providers").get_json() == []
    assert client.post("/api/auth/get_next_redirect", json={"code": "x"}).status_code == 400


def test_a_wrong_path_or_method_says_so(api: Api) -> None:
    assert api.post("runs/nope").status_code == 404
    assert api.client.get("/api/project/main/runs/get").status_code == 405


@pytest.mark.parametrize(
    "path",
    [
        "/api/volumes/list",
        "secrets/list",
        "gateways/list",
        "volumes/list",
        "exports/list",
        "imports/list",
    ],
)
def test_there_is_none_of_what_is_left_out(api: Api, path: str) -> None:
    assert api.ask(path, {}) == []


@pytest.mark.parametrize(
    "path", ["secrets/create_or_update", "volumes/create", "gateways/apply", "backends/create"]
)
def test_what_is_left_out_is_refused_in_a_sentence(api: Api, path: str) -> None:
    code, said = api.refusal(path, {"name": "x"})

    assert code == "error"
    assert "not supported by Casemate" in said


def tenants_calls(app: Flask) -> list[str]:
    return [
        rule.rule.replace("<project_name>", "main")
        for rule in app.url_map.iter_rules()
        if rule.endpoint.startswith("runs") and "POST" in (rule.methods or ()) and "path:" not in rule.rule
        and rule.endpoint.split(".")[0] not in ("runs_server", "runs_document")
    ]  # fmt: skip


def issue(database: Database, name: str, role: ProjectRole | None = None) -> str:
    """A token of a new user, with a role in project main."""
    with database.writing() as session:
        user = directory.add_user(session, name)
        if role is not None:
            directory.set_member(session, directory.project_named(session, "main"), user, role)
        return directory.add_token(session, user, name="", made_by="test")[1]


def test_no_call_is_answered_without_a_token(app: Flask, client: FlaskClient) -> None:
    paths = [path for path in tenants_calls(app) if path.startswith("/api/")]
    for path in paths:
        assert client.post(path, json={}).status_code == 401, path
        wrong = client.post(path, json={}, headers={"Authorization": "Bearer cm_wrong"})
        assert wrong.status_code == 403, path
        assert wrong.get_json() == {"detail": {"msg": "Invalid token", "code": None}}
    assert len(paths) > 60


def test_a_stranger_is_denied_every_call_of_a_project(
    app: Flask, client: FlaskClient, database: Database
) -> None:
    alice = Api(client, issue(database, "alice"))
    bodies: dict[str, Any] = {
        "/get_plan": {"run_spec": {"configuration": TASK}},
        "fleets/get_plan": {"spec": {"configuration": {"type": "fleet", "nodes": 1}, "profile": {}}},
        "fleets/apply": {
            "plan": {"spec": {"configuration": {"type": "fleet", "nodes": 1}, "profile": {}}},
            "force": False,
        },
        "runs/apply": PLAN,
        "fleets/delete": {"names": []},
        "delete_instances": {"name": "x", "instance_nums": []},
        "runs/delete": {"runs_names": []},
        "runs/stop": {"runs_names": [], "abort": False},
        "gpus/list": {"run_spec": {"configuration": TASK}},
        "logs/poll": {"run_name": "x", "job_submission_id": "0ffd2e50-41f0-4fee-a1de-bbefaef162ed"},
        "repos/init": {"repo_id": "none", "repo_info": {"repo_type": "virtual"}},
        "instances/get": {"id": "0ffd2e50-41f0-4fee-a1de-bbefaef162ed"},
        "_members": {"members": [], "usernames": []},
    }  # fmt: skip
    paths = [path for path in tenants_calls(app) if "/main/" in path and path.startswith("/api/")]
    for path in paths:
        body = next((body for end, body in reversed(bodies.items()) if path.endswith(end)), {})
        if path.endswith("_members"):
            body = {"usernames": []} if "remove" in path else {"members": []}
        answer = alice.post(path, body)

        assert answer.status_code == 403, (path, answer.text)
        assert answer.get_json() == {"detail": {"msg": "Access denied", "code": None}}
        elsewhere = alice.post(path.replace("/main/", "/nowhere/"), body)
        assert elsewhere.status_code == 404, (path, elsewhere.text)
    assert len(paths) > 40
