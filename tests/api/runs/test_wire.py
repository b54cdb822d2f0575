"""The wire rules of the runs interface: who is let in, how it refuses, and that it knows what clients send."""

from __future__ import annotations

import json
import re
import uuid
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from accounts import directory
from accounts.roles import ProjectRole
from models.base import Database
from tests.api.runs.conftest import Api, Host, described

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
    answer = api.client.post(exchange["path"], json=exchange["request"], headers=headers)
    described(api.client).check(answer, exchange["request"])
    return answer


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
    # One rule stands for all paths of a service; its root ends with a slash here.
    missing = [path for path in index if path not in known and "/proxy/services/" not in path]

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


def test_what_is_no_version_is_refused_without_a_code(api: Api) -> None:
    answer = api.post("/api/users/get_my_user", **{"X-API-VERSION": "new"})

    assert answer.get_json() == {"detail": [{"msg": "Invalid version: 'new'", "code": None}]}


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


def tenants_calls(app: Flask) -> list[tuple[str, str]]:
    """Method and path of every call that needs a token."""
    return [
        (method, re.sub("<(?!project_name)\\w+>", "x", rule.rule).replace("<project_name>", "main"))
        for rule in app.url_map.iter_rules()
        for method in sorted({"GET", "POST"} & (rule.methods or set()))
        if rule.endpoint.split(".")[0] in ("runs", "runs_absent", "runs_fleets", "runs_users", "runs_projects")
    ]  # fmt: skip


def issue(database: Database, name: str, role: ProjectRole | None = None) -> str:
    """A token of a new user, with a role in project main."""
    with database.writing() as session:
        user = directory.add_user(session, name)
        if role is not None:
            directory.set_member(session, directory.project_named(session, "main"), user, role)
        return directory.add_token(session, user, name="", made_by="test")[1]


def test_no_call_is_answered_without_a_token(app: Flask, client: FlaskClient) -> None:
    calls = tenants_calls(app)
    for method, path in calls:
        assert client.open(path, method=method, json={}).status_code == 401, path
        headers = {"Authorization": "Bearer cm_wrong"}
        wrong = client.open(path, method=method, json={}, headers=headers)
        assert wrong.status_code == 403, path
        assert wrong.get_json() == {"detail": {"msg": "Invalid token", "code": None}}
    assert len(calls) > 60


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
        "get_instance_health_checks": {"fleet_name": "x", "instance_num": 0},
        "instances/get": {"id": "0ffd2e50-41f0-4fee-a1de-bbefaef162ed"},
        "_members": {"members": [], "usernames": []},
    }  # fmt: skip
    calls = [(method, path) for method, path in tenants_calls(app) if "/main/" in path]
    headers = {"Authorization": f"Bearer {alice.token}"}
    for method, path in calls:
        body = next((body for end, body in reversed(bodies.items()) if path.endswith(end)), {})
        if path.endswith("_members"):
            body = {"usernames": []} if "remove" in path else {"members": []}
        answer = client.open(path, method=method, json=body, headers=headers)

        assert answer.status_code == 403, (path, answer.text)
        assert answer.get_json() == {"detail": {"msg": "Access denied", "code": None}}
        nowhere = path.replace("/main/", "/nowhere/")
        elsewhere = client.open(nowhere, method=method, json=body, headers=headers)
        assert elsewhere.status_code == 404, (path, elsewhere.text)
    assert len(calls) > 40


@pytest.mark.parametrize(
    ("more", "field"),
    [
        ({"ports": [8000] * 101}, "ports"),
        ({"commands": ["true"] * 1001}, "commands"),
        ({"fleets": ["default"] * 1001}, "fleets"),
    ],
)
def test_a_list_has_an_end(api: Api, more: Any, field: str) -> None:
    answer = api.post("runs/get_plan", {"run_spec": {"configuration": {**TASK, **more}}})

    (row,) = answer.get_json()["detail"]
    assert (answer.status_code, row["type"], row["loc"][-1]) == (422, "too_long", field)
    assert row["msg"].startswith("List should have at most 1")


@pytest.mark.parametrize(
    ("path", "body"),
    [
        ("runs/stop", {"runs_names": ["x"] * 1001, "abort": False}),
        ("runs/delete", {"runs_names": ["x"] * 1001}),
        ("fleets/delete", {"names": ["x"] * 1001}),
        ("/api/instances/list", {"project_names": ["x"] * 1001}),
        ("/api/users/delete", {"users": ["x"] * 1001}),
        ("/api/projects/main/remove_members", {"usernames": ["x"] * 1001}),
        ("/api/events/list", {"actors": [None] * 1001}),
    ],
)
def test_a_question_is_about_a_thousand_things_at_most(api: Api, path: str, body: Any) -> None:
    answer = api.post(path, body)

    assert (answer.status_code, answer.get_json()["detail"][0]["type"]) == (422, "too_long")


def test_a_spec_that_is_too_large_to_keep_is_refused_at_once(api: Api) -> None:
    large = {"env": {"A": "x" * 300_000}}
    run = {"run_spec": {"configuration": {**TASK, **large, "nodes": 100}}}
    fleet = {"configuration": {"type": "fleet", "nodes": 1, "tags": {"a": "x" * 300_000}}}

    code, said = api.refusal("runs/get_plan", run)
    assert (code, said) == ("error", "run_spec: must be at most 256 KiB as JSON")
    assert api.refusal("runs/apply", {"plan": run, "force": False}) == (code, said)
    told = api.refusal("fleets/get_plan", {"spec": {**fleet, "profile": {}}})
    assert told == ("error", "spec: must be at most 256 KiB as JSON")


@pytest.mark.parametrize("value", [-1, "-5m", "1.5h", "5y", True])
def test_a_duration_is_a_time_forward(api: Api, value: Any) -> None:
    spec = {"configuration": {**TASK, "retry": {"duration": value}}}

    (row,) = api.post("runs/get_plan", {"run_spec": spec}).get_json()["detail"]

    assert (row["loc"][-1], row["input"]) == ("duration", value)


@pytest.mark.parametrize("user", ["", ":", "a:", ":a", "a:b:c", "a b"])
def test_a_user_is_a_name_or_a_name_and_a_group(api: Api, user: str) -> None:
    answer = api.post("runs/get_plan", {"run_spec": {"configuration": {**TASK, "user": user}}})

    assert (answer.status_code, answer.get_json()["detail"][0]["loc"][-1]) == (422, "user")


def test_the_one_word_that_a_field_takes_is_told(api: Api) -> None:
    probes = {"type": "service", "port": 1, "commands": ["x"], "probes": [{"type": "tcp"}]}

    (row,) = api.post("runs/get_plan", {"run_spec": {"configuration": probes}}).get_json()["detail"]

    assert (row["type"], row["msg"]) == ("enum", "Input should be 'http'")


@pytest.mark.parametrize(
    ("body", "why"),
    [
        (b'{"run_name": ' + b"[" * 10_000 + b"]" * 10_000 + b"}", "nested too deeply"),
        (b'{"run_name": [' + b"0," * 200_000 + b"0]}", "more than 100000 values"),
        (b'{"run_name": NaN}', "NaN is not a JSON number"),
    ],
)
def test_json_that_is_not_taken_is_refused_with_the_reason(api: Api, body: bytes, why: str) -> None:
    answer = api.client.post(
        "/api/project/main/runs/get",
        data=body,
        headers={"Authorization": f"Bearer {api.token}", "Content-Type": "application/json"},
    )

    (row,) = answer.get_json()["detail"]
    assert (answer.status_code, row["type"]) == (422, "json_invalid")
    assert why in row["ctx"]["error"]


def test_a_body_that_curl_calls_a_form_is_not_lost(api: Api) -> None:
    answer = api.client.post(
        "/api/runs/list",
        data=b'{"project_name": "main"}',
        headers={
            "Authorization": f"Bearer {api.token}",
            "Content-Type": "application/x-www-form-urlencoded",
        },
    )

    (row,) = answer.get_json()["detail"]
    assert (answer.status_code, row["loc"]) == (422, ["body"])
    assert row["msg"] == "needs the header Content-Type: application/json"


def test_a_name_that_is_refused_is_called_what_the_request_calls_it(api: Api) -> None:
    for path, body, field in (
        ("/api/projects/create", {"project_name": "-x"}, "project_name"),
        ("/api/users/create", {"username": "A b", "global_role": "user"}, "username"),
        ("/api/users/public_keys/add", {"key": "x"}, "key"),
    ):
        (row,) = api.post(path, body).get_json()["detail"]

        assert row["fields"] == [{"loc": ["body", field]}]
        assert row["msg"].startswith(f"{field}: ")


@pytest.mark.parametrize(
    "path",
    ["/api/files/upload_archive", "/api/sshproxy/get_upstream", "/proxy/models/main/chat/completions"],
)  # fmt: skip
def test_parts_that_are_left_out_refuse_in_the_form_of_this_surface(api: Api, path: str) -> None:
    assert api.refusal(path, {}) == ("error", "this part of dstack: not supported by Casemate")
    assert api.client.post(path, data=b"\x1f\x8b", headers={}).status_code == 401
    assert api.post(f"{path}/nope", {}).get_json() == {"detail": "Not Found"}


def test_what_is_not_measured_is_an_empty_list(api: Api) -> None:
    headers = {"Authorization": f"Bearer {api.token}"}
    api.ask(
        "runs/apply", {**PLAN, "plan": {"run_spec": {"run_name": "one", "configuration": TASK}}}
    )

    measured = api.client.get("/api/project/main/metrics/job/one", headers=headers)
    unknown = api.client.get("/api/project/main/metrics/job/two", headers=headers)
    models = api.client.get("/proxy/models/main/models", headers=headers)

    assert measured.get_json() == {"metrics": []}
    assert unknown.get_json()["detail"][0]["code"] == "resource_not_exists"
    assert models.get_json() == {"object": "list", "data": []}
    query = {"fleet_name": "none", "instance_num": 0}
    code, _ = api.refusal("instances/get_instance_health_checks", query)
    assert code == "resource_not_exists"


@pytest.mark.parametrize(
    ("more", "field", "msg"),
    [
        ({"resources": {"cpu": -1}}, "count", "Input should be greater than or equal to 0"),
        ({"tags": {"a": 1}}, "a", "Input should be a valid string"),
        ({"tags": ["a"]}, "tags", "Input should be a valid dictionary"),
    ],
)
def test_a_refusal_says_what_the_rule_is_and_where(
    api: Api, more: Any, field: str, msg: str
) -> None:
    answer = api.post("runs/get_plan", {"run_spec": {"configuration": {**TASK, **more}}})

    (row,) = answer.get_json()["detail"]
    assert (answer.status_code, row["loc"][-1], row["msg"]) == (422, field, msg)


def test_a_range_of_nodes_that_runs_backward_is_told_so(api: Api) -> None:
    spec = {"configuration": {"type": "fleet", "nodes": "2..1"}, "profile": {}}

    (row,) = api.post("fleets/get_plan", {"spec": spec}).get_json()["detail"]

    assert row["msg"] == "Value error, `max` must be at least 1 and not less than `min`"


@pytest.mark.parametrize(
    ("path", "body", "what"),
    [
        ("/api/projects/create", {"project_name": "one", "templates_repo": "x"}, "templates"),
        ("/api/projects/main/update", {"templates_repo": "x"}, "templates"),
        (
            "fleets/get_plan",
            {"spec": {"configuration": {"type": "fleet", "nodes": 1, "blocks": 4}, "profile": {}}},
            "blocks",
        ),
    ],
)
def test_what_would_not_be_done_is_not_taken(api: Api, path: str, body: Any, what: str) -> None:
    assert api.refusal(path, body) == ("error", f"{what}: not supported by Casemate")


def test_an_id_of_another_project_is_like_one_of_nothing(
    api: Api, database: Database, background: Host
) -> None:
    api.fleet("pool")
    api.run("sleep 60", name="long")
    run = api.until("long", "running")
    (instance,) = api.ask("/api/instances/list", {})
    alice = Api(api.client, issue(database, "alice"), project="alice")
    random, user = str(uuid.uuid4()), api.ask("/api/users/get_my_user")["id"]
    job, fleet = run["latest_job_submission"]["id"], instance["fleet_id"]
    calls: list[tuple[str, Any, str]] = [
        ("runs/get", lambda each: {"id": each}, run["id"]),
        ("fleets/get", lambda each: {"id": each}, fleet),
        ("instances/get", lambda each: {"id": each}, instance["id"]),
        ("logs/poll", lambda each: {"run_name": "long", "job_submission_id": each}, job),
        ("/api/instances/list", lambda each: {"fleet_ids": [each]}, fleet),
        ("/api/runs/list", lambda each: {"prev_run_id": each}, run["id"]),
        *(
            ("/api/events/list", lambda each, by=by: {by: [each]}, known)
            for by, known in (
                ("target_runs", run["id"]), ("within_runs", run["id"]), ("target_jobs", job), ("target_users", user),
                ("target_fleets", fleet), ("within_fleets", fleet), ("target_instances", instance["id"]),
                ("actors", user),
            )
        ),
    ]  # fmt: skip

    for path, body, known in calls:
        ours, nobodys = alice.post(path, body(known)), alice.post(path, body(random))
        assert (ours.status_code, ours.data) == (nobodys.status_code, nobodys.data), path
    for path, body in (
        ("runs/stop", {"runs_names": ["long"], "abort": True}),
        ("fleets/delete", {"names": ["pool"]}),
    ):
        assert alice.ask(path, body) is None
    assert api.get("long")["status"] == "running"
    sized = {"resources": {"cpu": "1..", "memory": "1GB..", "disk": None}}
    spec = {"configuration": {**TASK, **sized, "fleets": ["main/pool", "pool"]}}
    assert alice.ask("runs/get_plan", {"run_spec": spec})["job_plans"][0]["offers"] == []
    api.ask("runs/stop", {"runs_names": ["long"], "abort": True})
