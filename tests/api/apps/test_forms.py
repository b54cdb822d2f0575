"""Every answer has the form that the published clients check, in every version."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flask import Flask
from flask.testing import FlaskClient

from core import certs
from tests.api.apps.conftest import COMPOSE, VERSIONS, Api, Contract
from tests.common import rows
from tests.common.described import Described

Fits = Callable[[str, Any], None]


def form(name: str, version: str) -> str:
    """The form's name: the newer versions add to the second one alone."""
    return f"{name}-v{'20251028' if version == VERSIONS[0] else '20260121'}"


@pytest.mark.parametrize("version", VERSIONS)
def test_what_is_written_by_version(ann: Api, fits: Fits, version: str) -> None:
    vm = ann.deploy(compose_file={"storage_fs": "zfs"})
    asked = ann.speaking(version)

    fits(form("app-list", version), asked.get("/apps"))
    fits(form("app", version), asked.get(f"/apps/{vm['app_id']}"))
    fits(form("app-cvms", version), asked.get(f"/apps/{vm['app_id']}/cvms"))
    fits(form("cvm-list", version), asked.get("/cvms/paginated"))
    fits(form("current-user", version), asked.get("/auth/me"))


@pytest.mark.parametrize("version", VERSIONS)
def test_what_every_version_writes_alike(ann: Api, fits: Fits, version: str) -> None:
    vm = ann.speaking(version).deploy()
    asked, app = ann.speaking(version), f"/apps/{vm['app_id']}"
    revisions = asked.get(f"{app}/revisions")
    key = revisions["revisions"][0]["revision_id"]

    fits("cvm-action", vm)
    fits("provision", asked.provision("other-app", kms="PHALA"))
    fits("app-revisions", revisions)
    fits("app-revision-detail", asked.get(f"{app}/revisions/{key}"))
    fits("app-revision-detail", asked.get(f"{app}/revisions/{key}?raw_compose_file=true"))
    fits("app-filter-options", asked.get("/apps/filter-options"))
    fits("app-attestation", asked.get(f"{app}/attestations"))
    fits("device-allowlist", asked.get(f"{app}/device-allowlist"))
    fits("is-allowed", asked.post(f"{app}/is-allowed", {"compose_hash": "ab" * 32}))
    fits("cvms-is-allowed", asked.post(f"{app}/cvms/is-allowed"))
    fits("status-batch", asked.post("/status/batch", {"vm_uuids": [vm["vm_uuid"]]}))
    fits("available-nodes", asked.get("/teepods/available"))
    fits("instance-types", asked.get("/instance-types"))
    fits("os-images", asked.get("/os-images"))
    fits("cvm-action", asked.post(f"/cvms/{vm['vm_uuid']}/stop"))


@pytest.mark.parametrize("version", VERSIONS[:3])
def test_kms_entries_of_the_older_versions(ann: Api, fits: Fits, version: str) -> None:
    fits("kms-list", ann.speaking(version).get("/kms"))


def test_what_is_on_chain(ann: Api, fits: Fits) -> None:
    vm = ann.deploy(kms="ETHEREUM")

    for version in VERSIONS:
        asked, app = ann.speaking(version), f"/apps/{vm['app_id']}"
        fits(form("app", version), asked.get(app))
        fits("device-allowlist", asked.get(f"{app}/device-allowlist"))
        fits("cvms-is-allowed", asked.post(f"{app}/cvms/is-allowed"))
        fits("is-allowed", asked.post(f"/cvms/{vm['vm_uuid']}/is-allowed"))


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/apps?page=0", "validation-error"),
        ("/apps?page_size=101", "validation-error"),
        ("/apps?listed=perhaps", "validation-error"),
        ("/apps/" + "00" * 20, "error"),
        ("/apps/" + "00" * 20 + "/revisions?page_size=1001", "validation-error"),
        ("/cvms/nobody", "error"),
        ("/kms/none", "error"),
        ("/no/such/path", "error"),
    ],
)
def test_refusals(ann: Api, fits: Fits, path: str, name: str) -> None:
    answer = ann.ask("GET", path)

    assert answer.status_code in (404, 422)
    fits(name, answer.json)


# The document of this surface -----------------------------------------------------------------------


def strict(schema: Any) -> Any:
    """The same with nothing left to guess: an object has what it says and no more."""
    if isinstance(schema, list):
        return [strict(each) for each in schema]
    if not isinstance(schema, dict):
        return schema
    told = {name: strict(value) for name, value in schema.items()}
    return told | ({"additionalProperties": False} if "properties" in told else {})


@pytest.fixture
def described(client: FlaskClient, ann: Api) -> Described:
    return Described(strict(client.get("/api-docs/apps.json").json))


@pytest.fixture
def newest(ann: Api) -> Api:
    """A caller who speaks the version that the document tells of."""
    return ann.speaking(VERSIONS[-1])


def test_the_document_tells_the_forms_of_apps(newest: Api, described: Described) -> None:
    vm = newest.deploy(instance_type="tdx.small", compose_file={"storage_fs": "zfs"})
    app = f"/apps/{vm['app_id']}"
    revision = newest.get(f"{app}/revisions")["revisions"][0]["revision_id"]

    for path in (
        *("/apps", "/apps/filter-options", app, f"{app}/cvms", f"{app}/revisions"),
        *(f"{app}/revisions/{revision}", f"{app}/revisions/{revision}?raw_compose_file=true"),
        f"{app}/device-allowlist",
    ):
        described.check(newest.ask("GET", path, 200))
    hashed = {"compose_hash": "ab" * 32}
    described.check(newest.ask("POST", f"{app}/is-allowed", 200, json=hashed))
    assert len(described.seen) == 8


def test_the_document_tells_the_forms_of_vms(newest: Api, described: Described) -> None:
    text = {"storage_fs": "zfs", "pre_launch_script": "true\n"}
    vm = newest.deploy(instance_type="tdx.small", compose_file=text)
    cvm = f"/cvms/{vm['vm_uuid']}"
    wanted = {"name": "other-app", "compose_file": {"docker_compose_file": COMPOSE}, "kms": "PHALA"}
    commit = {"app_id": vm["app_id"], "compose_hash": newest.get(cvm)["compose_hash"]}
    visible = {"public_logs": True, "public_sysinfo": True}

    for path in (
        *("/cvms/paginated", cvm, f"{cvm}/state", f"{cvm}/compose_file", f"{cvm}/user_config"),
        f"{cvm}/available-os-images",
    ):
        described.check(newest.ask("GET", path, 200))
    for method, path, body, status in (
        ("POST", "/cvms/provision", wanted, 200),
        ("POST", "/cvms", commit, 200),
        ("POST", f"{cvm}/is-allowed", {}, 200),
        ("PATCH", "/cvms/instance-ids", {}, 200),
        ("PATCH", f"{cvm}/instance-id", {}, 200),
        ("POST", f"{cvm}/stop", {}, 200),
        ("POST", "/status/batch", {"vm_uuids": [vm["vm_uuid"]]}, 200),
        ("POST", f"{cvm}/compose_file/provision", {"docker_compose_file": COMPOSE}, 200),
        ("PATCH", f"{cvm}/envs", {"encrypted_env": "ab"}, 202),
        ("PATCH", f"{cvm}/visibility", visible, 200),
        ("PATCH", cvm, {"user_config": "new"}, 202),
    ):
        described.check(newest.ask(method, path, status, json=body))
    assert len(described.seen) == 6 + 11


def test_the_document_tells_the_forms_of_what_guests_say(
    newest: Api, app: Flask, described: Described
) -> None:
    tcb = {name: "ab" * 48 for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "app_compose")}
    event = {"imr": 3, "event_type": 1, "digest": "00", "event": "app-id", "event_payload": ""}
    key = ec.generate_private_key(ec.SECP256R1())
    guest: dict[str, Any] = {
        "Info": {
            "tcb_info": json.dumps({**tcb, "event_log": [event]}),
            "app_cert": certs.authority(key, certs.name("CA"), path_length=0),
        },
        "ListContainers": {"containers": [{"id": "c1", "names": ["web"]}]},
        "SysInfo": {"num_cpus": 2, "disks": [{"name": "a", "mount_point": "/"}]},
        "NetworkInfo": {},
    }
    run_path = app.extensions["vms"].config.run_path
    rows.behave(run_path, guest={name: {"result": told} for name, told in guest.items()})
    vm = newest.deploy(compose_file={"public_sysinfo": True})
    cvm = f"/cvms/{vm['vm_uuid']}"

    for path in (
        *(f"{cvm}/attestation", f"{cvm}/composition", f"{cvm}/stats", f"{cvm}/network"),
        f"/apps/{vm['app_id']}/attestations",
    ):
        described.check(newest.ask("GET", path, 200))
    assert len(described.seen) == 5
    assert newest.get(f"{cvm}/attestation")["tcb_info"]
    assert newest.get(f"{cvm}/composition")["containers"]
    assert newest.get(f"{cvm}/stats")["sysinfo"]["disks"]


def test_the_document_tells_the_forms_of_the_host(newest: Api, described: Described) -> None:
    for path in (
        *("/auth/me", "/workspaces", "/workspaces/ann", "/workspaces/ann/nodes"),
        *("/workspaces/ann/quotas", "/teepods/available", "/instance-types", "/instance-types/cpu"),
        *("/os-images", "/kms", "/kms/main", "/kms/main/nodes", "/kms/on-chain/anvil"),
        *("/kms/phala/next_app_id?counts=2", f"/kms/main/pubkey/{'ab' * 20}"),
    ):
        described.check(newest.ask("GET", path, 200))
    assert len(described.seen) == 15


def test_every_answer_has_a_form_in_the_document(client: FlaskClient) -> None:
    """But for logs, texts and what says nothing."""
    bare = set()
    for path, operations in client.get("/api-docs/apps.json").json["paths"].items():
        for method in operations.keys() - {"parameters"}:
            for status, told in operations[method]["responses"].items():
                if status.startswith("2") and "schema" not in str(told.get("content")):
                    bare.add(f"{method} {status} {path}")

    assert bare == {
        "get 200 /api/v1/logs/{vm_id}",
        "get 200 /api/v1/cvms/{name}/docker-compose.yml",
        "get 200 /api/v1/cvms/{name}/pre-launch-script",
        "delete 204 /api/v1/cvms/{name}",
        "patch 204 /api/v1/cvms/{name}/compose_file",
        "patch 204 /api/v1/cvms/{name}/os-image",
        "patch 204 /api/v1/cvms/{name}/resources",
    }


def test_the_document_tells_the_forms_of_what_is_on_chain(
    newest: Api, contract: Contract, described: Described
) -> None:
    vm = newest.deploy(kms="ETHEREUM")
    contract.any_device = True

    for method, path in (("GET", ""), ("GET", "/device-allowlist"), ("POST", "/cvms/is-allowed")):
        described.check(newest.ask(method, f"/apps/{vm['app_id']}{path}", 200))
    assert len(described.seen) == 3
