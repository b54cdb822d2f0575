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


def test_the_document_tells_the_forms_of_answers(
    ann: Api, app: Flask, described: Described
) -> None:
    ann = ann.speaking(VERSIONS[-1])
    tcb = {name: "ab" * 48 for name in ("mrtd", "rtmr0", "rtmr1", "rtmr2", "rtmr3", "app_compose")}
    event = {"imr": 3, "event_type": 1, "digest": "00", "event": "app-id", "event_payload": ""}
    key = ec.generate_private_key(ec.SECP256R1())
    info = {
        "tcb_info": json.dumps({**tcb, "event_log": [event]}),
        "app_cert": certs.authority(key, certs.name("CA"), path_length=0),
    }
    rows.behave(app.extensions["vms"].config.run_path, guest={"Info": {"result": info}})
    text = {"storage_fs": "zfs", "pre_launch_script": "true\n"}
    vm = ann.deploy(instance_type="tdx.small", compose_file=text)
    of_app, cvm = f"/apps/{vm['app_id']}", f"/cvms/{vm['vm_uuid']}"
    revision = ann.get(f"{of_app}/revisions")["revisions"][0]["revision_id"]

    for path in (
        *("/apps", "/apps/filter-options", of_app, f"{of_app}/cvms", f"{of_app}/revisions"),
        f"{of_app}/revisions/{revision}",
        f"{of_app}/revisions/{revision}?raw_compose_file=true",
        *(f"{of_app}/attestations", f"{of_app}/device-allowlist", "/cvms/paginated", cvm),
        *(f"{cvm}/state", f"{cvm}/attestation", "/kms/on-chain/anvil", "/kms", "/kms/main"),
        *("/auth/me", "/teepods/available", "/instance-types", "/instance-types/cpu", "/os-images"),
        f"/kms/main/pubkey/{vm['app_id']}",
    ):
        described.check(ann.ask("GET", path, 200))
    wanted = {"name": "other-app", "compose_file": {"docker_compose_file": COMPOSE}, "kms": "PHALA"}
    commit = {"app_id": vm["app_id"], "compose_hash": ann.get(cvm)["compose_hash"]}
    for method, path, body, status in (
        ("POST", "/cvms/provision", wanted, 200),
        ("POST", "/cvms", commit, 200),
        ("POST", f"{of_app}/is-allowed", {"compose_hash": "ab" * 32}, 200),
        ("POST", f"{cvm}/is-allowed", {}, 200),
        ("PATCH", "/cvms/instance-ids", {}, 200),
        ("PATCH", f"{cvm}/instance-id", {}, 200),
        ("POST", f"{cvm}/stop", {}, 200),
        ("PATCH", cvm, {"user_config": "new"}, 202),
    ):
        described.check(ann.ask(method, path, status, json=body))
    assert len(described.seen) == 21 + 8


def test_the_document_tells_the_forms_of_what_is_on_chain(
    ann: Api, contract: Contract, described: Described
) -> None:
    ann = ann.speaking(VERSIONS[-1])
    vm = ann.deploy(kms="ETHEREUM")
    contract.any_device = True

    for method, path in (("GET", ""), ("GET", "/device-allowlist"), ("POST", "/cvms/is-allowed")):
        described.check(ann.ask(method, f"/apps/{vm['app_id']}{path}", 200))
    assert len(described.seen) == 3
