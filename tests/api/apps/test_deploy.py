"""Making VMs in two steps: what is promised, what is refused, and that nothing stays of what failed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flask import Flask
from sqlalchemy import select

from apps import records
from models.app import Provision
from models.base import Database
from models.vm import Vm
from tests.api.apps.conftest import COMPOSE, CONTRACT, Api
from tests.common import rows
from vmm.service import Vms


def text_of(ann: Api, name: str = "web-app") -> str:
    """The exact app-compose text that a VM boots."""
    app_id = ann.speaking("2026-01-21").get(f"/cvms/{name}")["app_id"]
    (revision,) = ann.get(f"/apps/{app_id}/revisions")["revisions"]
    path = f"/apps/{app_id}/revisions/{revision['revision_id']}?raw_compose_file=true"
    text: str = ann.get(path)["compose_file"]
    return text


def test_a_promise_is_kept(ann: Api, kms_key: X25519PrivateKey) -> None:
    promise = ann.provision(kms="PHALA", env_keys=["SECRET"], listed=True)
    sealed = "0x" + "ab" * 80
    vm = ann.post(
        "/cvms",
        {k: promise[k] for k in ("app_id", "compose_hash")} | {"encrypted_env": sealed},
    )

    assert promise["app_env_encrypt_pubkey"] == kms_key.public_key().public_bytes_raw().hex()
    assert (vm["app_id"], vm["status"], vm["vcpu"], vm["memory"], vm["disk_size"]) == (
        promise["app_id"], "running", 1, 2048, 20,
    )  # fmt: skip
    shown = ann.get("/cvms/web-app")
    assert (shown["listed"], shown["kms_info"]["encrypted_env_pubkey"]) == (
        True,
        promise["app_env_encrypt_pubkey"],
    )
    key = ann.get(f"/apps/{vm['app_id']}/revisions")["revisions"][0]["revision_id"]
    assert ann.get(f"/apps/{vm['app_id']}/revisions/{key}")["encrypted_env"] == sealed[2:]


def test_the_text_holds_what_was_asked_for_and_nothing_else(ann: Api) -> None:
    promise = ann.provision(compose_file={"pre_launch_script": "", "public_logs": True, "name": ""})
    ann.post("/cvms", {k: promise[k] for k in ("app_id", "compose_hash")})

    text = text_of(ann)
    assert hashlib.sha256(text.encode()).hexdigest() == promise["compose_hash"]
    assert json.loads(text) == {
        "docker_compose_file": COMPOSE, "manifest_version": 2, "name": "web-app",
        "public_logs": True, "runner": "docker-compose",
    }  # fmt: skip
    assert text.startswith('{\n    "docker_compose_file":"')


def test_variables_and_a_named_kms_ask_for_its_keys(ann: Api) -> None:
    ann.deploy("one-app", kms="PHALA")
    ann.deploy("two-app", compose_file={"allowed_envs": ["A"]})
    ann.deploy("three-app", kms="PHALA", compose_file={"kms_enabled": False})

    flags = [
        json.loads(text_of(ann, f"{name}-app")).get("kms_enabled")
        for name in ("one", "two", "three")
    ]
    assert flags == [True, True, False]


def test_the_next_app_ids_are_foretold_and_can_be_pinned(ann: Api) -> None:
    first, second = ann.get("/kms/phala/next_app_id?counts=2")["app_ids"]

    pinned = ann.provision("pinned-app", nonce=second["nonce"], app_id="0x" + second["app_id"])
    wrong = ann.provision("wrong-app", 409, nonce=second["nonce"], app_id=first["app_id"])
    alone = ann.provision("alone-app", 400, nonce=7)

    assert pinned["app_id"] == second["app_id"]
    assert wrong["error_code"] == "ERR-03-007"
    assert alone["error_code"] == "ERR-02-008"
    assert ann.provision("other-app")["app_id"] not in (first["app_id"], second["app_id"])


def test_two_promises_of_one_text_are_both_kept(ann: Api) -> None:
    text = {"name": "same", "docker_compose_file": COMPOSE}
    one, two = (ann.provision(name, compose_file=text) for name in ("one-app", "two-app"))
    assert one["compose_hash"] == two["compose_hash"]

    made = [
        ann.post("/cvms", {k: each[k] for k in ("app_id", "compose_hash")}) for each in (two, one)
    ]

    assert [each["name"] for each in made] == ["two-app", "one-app"]
    assert one["app_id"] != two["app_id"]


def test_who_commits_again_gets_the_vm_that_was_made(ann: Api) -> None:
    promise = ann.provision()
    given = {k: promise[k] for k in ("app_id", "compose_hash")}

    first, again = ann.post("/cvms", given), ann.post("/cvms", given)

    assert first["vm_uuid"] == again["vm_uuid"]
    assert ann.get("/cvms/paginated")["total"] == 1


def test_who_commits_again_gets_it_though_another_promise_of_the_text_waits(ann: Api) -> None:
    told, other = ann.provision(), ann.provision()
    commit = {"app_id": told["app_id"], "compose_hash": told["compose_hash"]}
    made = ann.post("/cvms", commit)

    assert other["compose_hash"] == told["compose_hash"]
    assert ann.post("/cvms", commit)["vm_uuid"] == made["vm_uuid"]


def test_a_promised_app_id_is_not_taken_for_a_contract(ann: Api) -> None:
    told = ann.provision(kms="PHALA")
    ann.provision(kms="ETHEREUM")

    made = ann.post("/cvms", {"app_id": told["app_id"], "compose_hash": told["compose_hash"]})

    assert ann.get(f"/apps/{made['app_id']}")["kms_type"] == "phala"


def test_a_commit_that_was_not_promised_is_refused(ann: Api, bob: Api) -> None:
    promise = ann.provision()
    given = {k: promise[k] for k in ("app_id", "compose_hash")}

    for caller, change, status, code in (
        (bob, {}, 466, "ERR-01-006"),
        (ann, {"compose_hash": "00" * 32}, 466, "ERR-01-006"),
        (ann, {"app_id": "11" * 20}, 409, "ERR-03-007"),
    ):
        refused = caller.post("/cvms", given | change, status)
        assert refused["error_code"] == code
        assert "detail" not in refused


def test_a_commit_for_an_app_that_is_there_needs_a_promise_of_its_own(ann: Api) -> None:
    first = ann.provision()
    app = {"app_id": first["app_id"]}
    ann.post("/cvms", app | {"compose_hash": first["compose_hash"]})
    second = ann.provision(name="other-app", compose_file={"docker_compose_file": COMPOSE + "#\n"})

    unknown = ann.post("/cvms", app | {"compose_hash": "00" * 32}, 466)
    others = ann.post("/cvms", app | {"compose_hash": second["compose_hash"]}, 409)

    assert (unknown["error_code"], others["error_code"]) == ("ERR-01-006", "ERR-03-007")


def test_a_promise_ends_after_fourteen_days(ann: Api, database: Database) -> None:
    promise = ann.provision()
    with database.writing() as session:
        kept = session.scalars(select(Provision)).one()
        kept.created_ms -= records.KEPT_S * 1000 + 60_000

    refused = ann.post("/cvms", {k: promise[k] for k in ("app_id", "compose_hash")}, 466)

    assert refused["error_code"] == "ERR-01-006"
    ann.provision("other-app")
    with database.reading() as session:
        assert len(session.scalars(select(Provision)).all()) == 1


def test_of_a_start_that_fails_nothing_stays_but_the_promise(
    ann: Api, app: Flask, database: Database
) -> None:
    promise = ann.provision()
    given = {k: promise[k] for k in ("app_id", "compose_hash")}
    run_path = app.extensions["vms"].config.run_path
    rows.behave(run_path, fail="no such machine")

    refused = ann.ask("POST", "/cvms", json=given)

    assert refused.status_code in (409, 500, 502, 503)
    with database.reading() as session:
        assert session.scalars(select(Vm).where(Vm.wished != "removed")).all() == []
    rows.behave(run_path)
    assert ann.post("/cvms", given)["status"] == "running"


class Killed(BaseException):
    """The process is gone."""


def test_a_kill_after_a_start_that_failed_leaves_the_promise(
    ann: Api, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise = ann.provision()
    given = {k: promise[k] for k in ("app_id", "compose_hash")}
    run_path, forget = app.extensions["vms"].config.run_path, Vms._forget
    rows.behave(run_path, fail="no such machine")

    def die(vms: Vms, vm_id: str) -> None:
        forget(vms, vm_id)
        raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr(Vms, "_forget", die)
        ann.post("/cvms", given)
    rows.behave(run_path)

    assert ann.post("/cvms", given)["status"] == "running"


def test_a_vm_that_is_removed_again_takes_its_promise_with_it(ann: Api) -> None:
    promise = ann.provision()
    given = {k: promise[k] for k in ("app_id", "compose_hash")}
    made = ann.post("/cvms", given)

    ann.ask("DELETE", f"/cvms/{made['vm_uuid']}")

    assert ann.post("/cvms", given, 466)["error_code"] == "ERR-01-006"


@pytest.mark.parametrize(
    "point", ["create.checked", "create.leased", "create.committed", "create.unanswered"]
)
def test_a_kill_loses_neither_the_promise_nor_what_a_vm_was_asked_to_be(
    ann: Api, monkeypatch: pytest.MonkeyPatch, point: str
) -> None:
    promise = ann.provision(instance_type="tdx.medium", listed=True)
    given = {k: promise[k] for k in ("app_id", "compose_hash")}

    def die(name: str) -> None:
        if name == point:
            raise Killed

    with monkeypatch.context() as patched, pytest.raises(Killed):
        patched.setattr("core.faults.point", die)
        ann.post("/cvms", given)
    made = ann.post("/cvms", given)

    shown = ann.get(f"/cvms/{made['vm_uuid']}")
    assert (shown["resource"]["instance_type"], shown["listed"]) == ("tdx.medium", True)
    assert ann.get("/cvms/paginated")["total"] == 1
    assert ann.post("/cvms", given)["vm_uuid"] == made["vm_uuid"]


def test_of_two_who_commit_a_promise_at_once_one_makes_the_vm(
    ann: Api, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    promise = ann.provision()
    given = {k: promise[k] for k in ("app_id", "compose_hash")}
    create, statuses = Vms.create, []

    def meanwhile(*args: Any) -> str:
        monkeypatch.setattr(Vms, "create", create)
        statuses.append(ann.ask("POST", "/cvms", json=given).status_code)
        return create(*args)

    monkeypatch.setattr(Vms, "create", meanwhile)
    refused = ann.post("/cvms", given, 466)

    assert (statuses, refused["error_code"]) == ([200], "ERR-01-006")
    assert ann.get("/cvms/paginated")["total"] == 1
    with database.reading() as session:
        assert session.scalars(select(Provision)).all() == []


def test_without_a_tee_nothing_is_made(ann: Api, app: Flask) -> None:
    promise = ann.provision()
    vms = app.extensions["vms"]
    bare = replace(vms, config=replace(vms.config, cvm=replace(vms.config.cvm, simulate=False)))
    app.extensions["apps"] = replace(app.extensions["apps"], vms=bare)

    refused = ann.post("/cvms", {k: promise[k] for k in ("app_id", "compose_hash")}, 400)

    assert refused["error_code"] == "ERR-02-013"
    assert "TDX" in refused["message"]
    assert ann.get("/cvms/paginated")["total"] == 0


@pytest.mark.parametrize(
    ("fields", "status", "code"),
    [
        ({"compose_file": {"docker_compose_file": ""}}, 400, "ERR-01-002"),
        ({"compose_file": {"docker_compose_file": "a: [b"}}, 400, "ERR-01-003"),
        ({"compose_file": {"docker_compose_file": "services: 5"}}, 400, "ERR-01-003"),
        ({"compose_file": {"pre_launch_script": "x" * 205_000}}, 400, "ERR-01-003"),
        ({"instance_type": "tdx.none"}, 404, "ERR-02-001"),
        ({"vcpu": 21, "memory": 2048}, 409, "ERR-02-003"),
        ({"vcpu": 1, "memory": 1_000_000}, 409, "ERR-02-004"),
        ({"vcpu": 1}, 400, "ERR-02-008"),
        ({"image": "nothing-1.0"}, 404, "ERR-02-010"),
        ({"kms": "BASE"}, 404, "ERR-02-011"),
        ({"kms_id": "nobody"}, 404, "ERR-02-011"),
        ({"teepod_id": 2}, 404, "ERR-01-001"),
        ({"region": "mars"}, 409, "ERR-02-002"),
    ],
)
def test_what_cannot_be_made_is_told_at_once(
    ann: Api, fields: dict[str, Any], status: int, code: str
) -> None:
    refused = ann.provision(status=status, **fields)

    assert (refused["error_code"], bool(refused["message"])) == (code, True)


@pytest.mark.parametrize(
    ("body", "place", "given"),
    [
        ({"name": "abc"}, ["body", "name"], "abc"),
        ({"name": "1abcdef"}, ["body", "name"], "1abcdef"),
        ({"name": "ab--cdef"}, ["body", "name"], "ab--cdef"),
        ({"name": "web-app\n"}, ["body", "name"], "web-app\n"),
        ({"name": ["x"]}, ["body", "name"], ["x"]),
        ({"name": "web-app", "disk_size": 65537}, ["body", "disk_size"], 65537),
        ({}, ["body", "name"], None),
        (
            {"name": "web-app", "compose_file": {"storage_fs": "ntfs"}},
            ["body", "compose_file", "storage_fs"],
            "ntfs",
        ),
        ({"name": "web-app", "env_keys": ["a", 5]}, ["body", "env_keys", 1], 5),
        ({"name": "web-app\udce4"}, ["body", "name"], "web-app\udce4"),
    ],
)
def test_bad_fields_are_named(
    ann: Api, body: dict[str, Any], place: list[object], given: object
) -> None:
    told = ann.post("/cvms/provision", body, 422)["detail"]

    assert [(each["loc"], each["input"]) for each in told] == [(place, given)]
    assert told[0]["msg"] and told[0]["type"]


def test_a_name_is_used_once_in_a_workspace(ann: Api, bob: Api) -> None:
    ann.deploy()

    # Told before anything about the rest.
    refused = ann.post("/cvms/provision", {"name": "web-app"}, 409)

    assert refused["error_code"] == "ERR-01-004"
    assert bob.deploy()["name"] == "web-app"


def test_an_on_chain_app_is_named_by_its_contract(ann: Api, bob: Api) -> None:
    promise = ann.provision(kms="ETHEREUM")
    vm = ann.post(
        "/cvms",
        {"app_id": "0x" + CONTRACT.upper(), "compose_hash": promise["compose_hash"],
         "contract_address": "0x" + CONTRACT, "deployer_address": "0x" + "de" * 20},
    )  # fmt: skip

    assert (promise["app_id"], promise["app_env_encrypt_pubkey"]) == (None, None)
    assert vm["app_id"] == CONTRACT
    told = ann.get("/cvms/web-app")
    assert (told["kms_type"], told["kms_info"]["chain_id"]) == ("ethereum", 31337)
    assert told["kms_info"]["dstack_app_address"] == "0x" + CONTRACT
    assert told["kms_info"]["deployer_address"] == "0x" + "de" * 20
    other = bob.provision(kms="ETHEREUM")
    given = {"app_id": CONTRACT, "compose_hash": other["compose_hash"]}
    assert bob.post("/cvms", given, 409)["error_code"] == "ERR-03-007"


def test_a_published_port_gets_one_of_the_host(ann: Api, people: Callable[[str], Api]) -> None:
    ann.deploy(
        compose_file={"docker_compose_file": "services: {a: {image: x, ports: ['80:8080']}}"}
    )

    (endpoint,) = ann.get("/cvms/web-app")["endpoints"]

    assert endpoint["port"] == 80
    assert endpoint["app"].startswith("http://127.0.0.1:")
    assert ann.speaking("2025-10-28").get("/cvms/web-app")["public_urls"] == [endpoint]
