"""The list of apps and what it is asked for: whose apps, which of them, how they look."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient

from apps import records
from tests.api.apps.conftest import COMPOSE, VERSIONS, Api
from tests.common import rows
from vmm.schemas import Configuration
from vmm.service import Vms


def names(told: Any) -> list[str]:
    return [app["name"] for app in told["dstack_apps"]]


@pytest.mark.parametrize("headers", [{}, {"X-API-Key": "wrong"}, {"Authorization": "Bearer no"}])
def test_without_a_valid_key_nothing_is_told(client: FlaskClient, headers: dict[str, str]) -> None:
    answer = client.get("/api/v1/apps", headers=headers)

    assert answer.status_code == 401
    assert set(answer.json or {}) == {"detail"}


def test_a_bearer_token_is_as_good_as_the_header(client: FlaskClient, ann: Api) -> None:
    assert client.get("/api/v1/apps", headers={"Authorization": f"Bearer {ann.key}"}).json == {
        "dstack_apps": [], "page": 1, "page_size": 20, "total": 0, "total_pages": 0,
    }  # fmt: skip


def test_the_calls_also_stand_at_bare_paths(client: FlaskClient, ann: Api) -> None:
    vm = ann.deploy()
    key = {"X-API-Key": ann.key, "X-Phala-Version": ann.version}

    for path in ("", f"/{vm['app_id']}", f"/{vm['app_id']}/cvms", "/filter-options"):
        answer = client.get(f"/apps{path}", headers=key)
        assert (answer.status_code, answer.json) == (200, ann.get(f"/apps{path}"))
    assert client.post(f"/apps/{vm['app_id']}/cvms/is-allowed", headers=key).status_code == 200
    unknown = client.get(f"/apps/{'00' * 20}", headers={**key, "X-Phala-Version": VERSIONS[0]})
    assert (unknown.status_code, unknown.json) == (404, {"detail": "App not found"})
    assert unknown.headers["X-Phala-Version"] == VERSIONS[0]
    assert set(client.get("/apps").json or {}) == {"detail"}
    assert client.get("/apps?page_size=0", headers=key).status_code == 422


@pytest.mark.parametrize(
    ("asked", "used"), [*((each, each) for each in VERSIONS), ("2031-01-01", VERSIONS[-1])]
)
def test_the_answer_tells_its_version(ann: Api, asked: str, used: str) -> None:
    assert ann.speaking(asked).ask("GET", "/auth/me", 200).headers["X-Phala-Version"] == used


def test_nobody_sees_the_apps_of_another_project(ann: Api, bob: Api) -> None:
    vm = ann.deploy()

    assert names(bob.get("/apps")) == []
    for path in ("", "/cvms", "/revisions", "/attestations", "/device-allowlist"):
        assert bob.get(f"/apps/{vm['app_id']}{path}", 404) == {"detail": "App not found"}
    assert bob.get(f"/cvms/{vm['vm_uuid']}", 404)["error_code"] == "ERR-03-001"
    assert bob.post("/status/batch", {"vm_uuids": [vm["vm_uuid"]]}) == {}
    bob.ask("DELETE", f"/cvms/{vm['vm_uuid']}", 404)
    assert names(ann.get("/apps")) == ["web-app"]


def test_a_vm_made_elsewhere_is_an_app_with_its_exact_text(app: Flask, client: FlaskClient) -> None:
    vms: Vms = app.extensions["vms"]
    text = '{ "docker_compose_file" : "services: {}" }\n'
    vm_id = vms.create(Configuration(**{**rows.request(compose_file=text), "ports": []}))
    admin = Api(client, (vms.config.data_dir / "admin-token").read_text().strip())

    (shown,) = admin.get("/apps")["dstack_apps"]
    (revision,) = admin.get(f"/apps/{shown['app_id']}/revisions")["revisions"]
    path = f"/apps/{shown['app_id']}/revisions/{revision['revision_id']}"

    assert shown["cvms"][0]["vm_uuid"] == vm_id
    assert revision["operation_type"] == "deploy"
    assert admin.get(path + "?raw_compose_file=true")["compose_file"] == text
    assert admin.get(path)["compose_file"] == {"docker_compose_file": "services: {}"}


def test_pages_and_filters(ann: Api) -> None:
    for name in ("first-app", "second_app".replace("_", "-"), "third-app"):
        ann.deploy(name, listed=name == "third-app")
    ann.deploy("chain-app", kms="ETHEREUM", instance_type="tdx.medium")
    ann.post("/cvms/second-app/stop")

    assert names(ann.get("/apps")) == ["chain-app", "third-app", "second-app", "first-app"]
    page = ann.get("/apps?page=2&page_size=3")
    assert (names(page), page["total"], page["total_pages"]) == (["first-app"], 4, 2)
    for query, wanted in (
        ("search=SECOND", ["second-app"]),
        ("search=%25", []),
        ("search=" + page["dstack_apps"][0]["app_id"][3:20], ["first-app"]),
        ("search=app_" + page["dstack_apps"][0]["app_id"], ["first-app"]),  # as phala prints it
        ("status=stopped", ["second-app"]),
        ("status=stopped&status=running&search=app", names(ann.get("/apps"))),
        ("listed=true", ["third-app"]),
        ("kms_slug=chain", ["chain-app"]),
        ("kms_type=phala&status=running", ["third-app", "first-app"]),
        ("instance_type=tdx.medium", ["chain-app"]),
        ("node=attic&region=local&base_image=" + rows.IMAGE, names(ann.get("/apps"))),
        ("node=cellar", []),
        ("status=stopped&listed=true", []),
    ):
        assert names(ann.get(f"/apps?{query}")) == wanted, query


def test_the_filters_offer_what_is_there(ann: Api) -> None:
    assert set(map(tuple, ann.get("/apps/filter-options").values())) == {()}

    ann.deploy("chain-app", kms="ETHEREUM")

    assert ann.get("/apps/filter-options") == {
        "statuses": ["running"],
        "image_versions": [rows.IMAGE],
        "instance_types": ["tdx.small"],
        "kms_slugs": ["chain"],
        "kms_types": ["ethereum"],
        "regions": ["local"],
        "nodes": ["attic"],
    }


@pytest.mark.parametrize("spell", ["{}", "0x{}", "app_{}"])
def test_an_app_id_may_be_spelt_in_several_ways(ann: Api, spell: str) -> None:
    app_id = ann.deploy()["app_id"]

    assert ann.get("/apps/" + spell.format(app_id))["app_id"] == app_id
    assert ann.get("/apps/" + spell.format(app_id.upper()))["app_id"] == app_id


def test_an_app_goes_with_its_last_vm_and_its_history_with_it(ann: Api, app: Flask) -> None:
    vm = ann.deploy()
    ann.post(f"/apps/{vm['app_id']}/instances")
    shown = ann.get(f"/apps/{vm['app_id']}")
    assert (shown["cvm_count"], shown["current_cvm"]["vm_uuid"]) == (2, vm["vm_uuid"])

    ann.ask("DELETE", f"/cvms/{vm['vm_uuid']}", 204)
    left = ann.get(f"/apps/{vm['app_id']}")
    gone = ann.get(f"/cvms/{vm['vm_uuid']}", 404)
    history = ann.get(f"/apps/{vm['app_id']}/revisions")["revisions"]
    ann.ask("DELETE", f"/cvms/{left['cvms'][0]['vm_uuid']}", 204)

    assert left["cvm_count"] == 1
    assert gone["error_code"] == "ERR-03-001"
    assert [each["operation_type"] for each in history] == ["replicate", "deploy"]
    ann.get(f"/apps/{vm['app_id']}", 404)
    assert ann.get("/cvms/paginated")["total"] == 0


@pytest.mark.parametrize("version", VERSIONS)
def test_only_the_newer_versions_write_numbers_as_text(ann: Api, version: str) -> None:
    vm = ann.speaking(version).deploy(kms="ETHEREUM")
    told = ann.speaking(version).post(f"/apps/{vm['app_id']}/cvms/is-allowed")
    devices = ann.speaking(version).get(f"/apps/{vm['app_id']}/device-allowlist")["devices"]

    kind = int if version < "2026-05" else str
    assert isinstance(vm["id"], kind)
    assert [told["results"][0]["cvm_id"], devices[0]["cvm_ids"][0]] == [vm["id"]] * 2


def test_kms_entries_became_contracts(ann: Api) -> None:
    older, newer = ann.get("/kms"), ann.speaking("2026-06-23").get("/kms")

    assert [each["slug"] for each in older["items"]] == ["main", "chain"]
    assert [(each["contract_address"], each["chain_id"]) for each in newer["items"]] == [
        ("phala", 0),
        ("0x" + "aa" * 20, 31337),
    ]
    assert ann.get("/kms?is_onchain=true")["total"] == 1
    assert ann.get("/kms/" + older["items"][1]["id"])["slug"] == "chain"
    assert ann.get("/kms/main/nodes")["total"] == 1
    assert set(older) == {"items", "total", "page", "page_size", "pages"}


def test_workspaces_are_the_projects_of_the_caller(ann: Api) -> None:
    told = ann.get("/workspaces")

    assert [(each["slug"], each["role"], each["is_default"]) for each in told["data"]] == [
        ("ann", "owner", True)
    ]
    assert ann.get("/workspaces/ann")["id"] == told["data"][0]["id"]
    assert ann.get("/workspaces/ann/nodes")["items"][0]["name"] == "attic"
    assert ann.get("/workspaces/ann/quotas")["quotas"]["vcpu"]["limit"] == 20
    ann.get("/workspaces/main", 404)
    assert ann.get("/auth/me")["workspace"]["slug"] == "ann"


def test_a_running_vm_takes_of_the_quotas(ann: Api) -> None:
    before = ann.get("/teepods/available")["nodes"][0]
    ann.deploy(instance_type="tdx.medium")
    after = ann.get("/teepods/available")["nodes"][0]

    taken = [
        before[n] - after[n] for n in ("remaining_vcpu", "remaining_memory", "remaining_cvm_slots")
    ]
    assert taken == [2, 4096, 1]
    assert after["images"][0]["version"] == [0, 5, 4]


def test_compose_texts_reach_the_client_as_text(ann: Api) -> None:
    ann.deploy(compose_file={"pre_launch_script": "echo 1\n"})

    for name, text in (("docker-compose.yml", COMPOSE), ("pre-launch-script", "echo 1\n")):
        answer = ann.ask("GET", f"/cvms/web-app/{name}", 200)
        assert answer.content_type.startswith("text/")
        assert answer.text == text


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/apps/{app}"),
        ("GET", "/apps/{app}/attestations"),
        ("GET", "/cvms/{vm}"),
        ("POST", "/cvms/{vm}/stop"),
        ("POST", "/apps/{app}/instances"),
    ],
)
def test_a_vm_that_goes_meanwhile_is_not_found(
    ann: Api, monkeypatch: pytest.MonkeyPatch, method: str, path: str
) -> None:
    vm = ann.deploy()
    # Its row was read already when somebody else's removal ends.
    monkeypatch.setattr(records, "whole", lambda *_: {})

    given = {} if method == "GET" else {"json": {}}
    ann.ask(method, path.format(app=vm["app_id"], vm=vm["vm_uuid"]), 404, **given)


def test_a_bad_query_is_told_with_what_was_sent(ann: Api) -> None:
    told = ann.get("/apps?page=0&page_size=101", 422)["detail"]

    assert {each["loc"][1]: (each["loc"][0], each["input"]) for each in told} == {
        "page": ("query", "0"),
        "page_size": ("query", "101"),
    }
