"""Keys, sessions, signed requests, limits and balances of the SecretVM interface."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import replace
from io import BytesIO
from typing import Any

import pytest
from flask import Flask
from sqlalchemy import select

from accounts import agents, directory
from accounts.roles import ProjectRole
from core import k256
from core.config import Config
from core.config_secretvm import BillingConfig, SecretVmConfig, VmTypeConfig
from models.account import Token
from models.base import Database
from models.secretvm import SecretVm
from models.vm import Vm
from secretvm import billing
from tests.api.secretvm.conftest import ADMIN, COMPOSE, Tenant, new_tenant

KEY = hashlib.sha256(b"an agent of the tests").digest()
ADDRESS = agents.address_of(k256.uncompressed(k256.public_key(KEY)))


# Keys ------------------------------------------------------------------------------------------


def test_a_key_is_made_shown_once_and_kept_as_a_digest(
    admin: Tenant, app: Flask, database: Database
) -> None:
    made = admin.post("/keys", json={"user": "carol", "name": "laptop"}).json

    assert {name: made[name] for name in ("user", "project", "name")} == {
        "user": "carol",
        "project": "carol",
        "name": "laptop",
    }
    carol = Tenant(app.test_client(), made["key"])
    assert carol.get("/vm/instances").json == []
    assert carol.client.get("/api/vm/instances", headers={"x-api-key": made["key"]}).json == []
    listed = carol.get("/keys").json
    assert [each["id"] for each in listed] == [made["id"]]
    assert made["key"] not in json.dumps(admin.get("/keys").json)
    with database.reading() as session:
        token = session.get_one(Token, made["id"])
        assert token.digest == hashlib.sha256(made["key"].encode()).digest()


def test_a_key_ends_at_once_and_only_its_own_user_or_an_administrator_ends_it(
    admin: Tenant, alice: Tenant, bob: Tenant
) -> None:
    theirs = bob.get("/keys").json[0]["id"]

    assert alice.call("DELETE", f"/keys/{theirs}").status_code == 404
    assert bob.get("/vm/instances").status_code == 200
    ended = admin.call("DELETE", f"/keys/{theirs}")
    assert ended.json == {"deleted": True, "id": theirs}
    assert bob.get("/vm/instances").status_code == 401
    assert admin.call("DELETE", f"/keys/{theirs}").status_code == 404


def test_a_key_makes_things_in_the_project_it_was_made_for(
    app: Flask, admin: Tenant, alice: Tenant, bob: Tenant, database: Database
) -> None:
    with database.writing() as session:
        project = directory.project_named(session, "alice")
        user = directory.user_named(session, "bob")
        directory.set_member(session, project, user, ProjectRole.USER)
    other = new_tenant(app, admin, "bob", project="alice")

    vm = other.made()

    assert (vm["user"], vm["teamName"]) == ("bob", "alice")
    assert alice.get(f"/vm/{vm['id']}").status_code == 200


@pytest.mark.parametrize(
    ("body", "named"),
    [
        ({}, "user"),
        ({"user": "Carol"}, "user"),
        ({"user": "x" * 61}, "user"),
        ({"user": "main"}, "main"),
        ({"user": "carol", "project": "main"}, "project"),
        ({"user": "carol", "project": "nowhere"}, "nowhere"),
    ],
)
def test_a_key_that_breaks_a_rule_is_not_made(
    admin: Tenant, body: dict[str, str], named: str
) -> None:
    answer = admin.post("/keys", json=body)

    assert answer.status_code == 400, answer.text
    assert named in answer.json["message"]
    assert admin.get("/keys").json == []


def test_keys_are_made_by_administrators_alone(alice: Tenant) -> None:
    answer = alice.post("/keys", json={"user": "mallory"})

    assert answer.status_code == answer.json["statusCode"] == 403


@pytest.mark.parametrize("header", [{}, {"Authorization": "Bearer wrong"}, {"x-api-key": "wrong"}])
def test_without_a_valid_key_nothing_is_said(app: Flask, header: dict[str, str]) -> None:
    client = app.test_client()

    for path in ("/api/vm/instances", "/api/vm/x", "/api/keys", "/api/background-job/x"):
        answer = client.get(path, headers=header)
        assert answer.status_code == answer.json["statusCode"] == 401
        assert set(answer.json) == {"statusCode", "message"}
    assert client.get("/api/vm/types", headers=header).status_code == 200
    assert client.get("/api/templates", headers=header).status_code == 200


def test_a_session_tells_whose_key_it_is(app: Flask, alice: Tenant) -> None:
    told = alice.get("/auth/session").json

    assert told["user"]["name"] == "alice"
    assert set(told["user"]) == {"sub", "name", "email"}
    assert told["expires"].endswith("Z")
    anybody = app.test_client().get("/api/auth/session")
    assert (anybody.status_code, anybody.json) == (200, {})


def test_a_wrong_method_or_path_has_the_body_of_this_surface(alice: Tenant) -> None:
    for method, path, status in (
        ("PUT", "/vm/instances", 405),
        ("POST", "/pricing", 405),
        ("GET", "/vm/a/b/c", 404),
        ("GET", "/agent/nothing", 404),
    ):
        answer = alice.call(method, path)
        assert answer.status_code == answer.json["statusCode"] == status, path
        assert set(answer.json) == {"statusCode", "message"}


# Signed requests -------------------------------------------------------------------------------


def signed(
    method: str, path: str, body: str = "", *, at_ms: int | None = None, key: bytes = KEY
) -> dict[str, str]:
    """The headers of a request as an agent signs it."""
    timestamp = str(int(time.time() * 1000) if at_ms is None else at_ms)
    digest = hashlib.sha256(f"{method}{path}{body}{timestamp}".encode()).digest()
    message = b"\x19Ethereum Signed Message:\n32" + digest
    raw = k256.sign_recoverable(key, message)
    return {
        "x-agent-address": ADDRESS,
        "x-agent-signature": "0x" + (raw[:64] + bytes([raw[64] + 27])).hex(),
        "x-agent-timestamp": timestamp,
    }


def create_signed(app: Flask, *unsigned: str, **fields: str) -> Any:
    form: dict[str, Any] = {"name": "of an agent", "vmTypeId": "small", **fields}
    file = {
        "fieldname": "dockercompose",
        "originalname": "c.yml",
        "mimetype": "text/yaml",
        "size": len(COMPOSE),
        "sha256": hashlib.sha256(COMPOSE).hexdigest(),
    }
    body = json.dumps({"fields": form, "file": file}, sort_keys=True, separators=(",", ":"))
    headers = signed("POST", "/api/vm/create", body)
    data = {**form, "dockercompose": (BytesIO(COMPOSE), "c.yml", "text/yaml")}
    data |= {name: (BytesIO(b"more"), name) for name in unsigned}
    return app.test_client().post("/api/vm/create", data=data, headers=headers)


def test_an_agent_makes_a_vm_and_sees_it(app: Flask, database: Database) -> None:
    answer = create_signed(app, skip_launch="1")

    assert answer.status_code == 200, answer.text
    vm = answer.json
    assert (vm["user"], vm["upgradeability"]) == (ADDRESS, True)
    with database.reading() as session:
        assert session.scalars(select(SecretVm)).one().flags["skip_attest"] is True
    path = f"/api/agent/vm/{vm['id']}"
    told = app.test_client().get(path, headers=signed("GET", path)).json
    assert told["vmUid"] == vm["vm_uid"]
    assert set(told) == {
        "id", "name", "status", "vmDomain", "vmId", "vmUid", "created_at", "updated_at",
    }  # fmt: skip
    path = "/api/agent/balance"
    assert app.test_client().get(path, headers=signed("GET", path)).json == {"balance": "0"}


def test_a_signed_request_is_let_in_once(app: Flask) -> None:
    client, path = app.test_client(), "/api/agent/balance"
    headers = signed("GET", path)

    assert client.get(path, headers=headers).status_code == 200
    again = client.get(path, headers=headers)
    assert again.status_code == again.json["statusCode"] == 401
    assert client.get(path, headers=signed("GET", path, at_ms=None)).status_code == 200


# Half a minute more than allowed: what is signed for the future comes nearer while it is on its way.
@pytest.mark.parametrize("off_ms", [-330_000, 330_000])
def test_a_request_signed_at_another_time_is_refused(app: Flask, off_ms: int) -> None:
    path = "/api/agent/balance"
    headers = signed("GET", path, at_ms=int(time.time() * 1000) + off_ms)

    assert app.test_client().get(path, headers=headers).status_code == 401


def test_seconds_are_taken_for_seconds(app: Flask) -> None:
    path = "/api/agent/balance"

    headers = signed("GET", path, at_ms=int(time.time()))

    assert app.test_client().get(path, headers=headers).status_code == 200


def test_a_signature_is_for_one_request_of_one_signer(app: Flask) -> None:
    client, path = app.test_client(), "/api/agent/balance"
    good = signed("GET", path)
    bad = [
        signed("POST", path),
        signed("GET", "/api/agent/other"),
        signed("GET", path, "body"),
        signed("GET", path, key=b"\1" * 32),
        {**good, "x-agent-timestamp": str(int(time.time() * 1000) + 1)},
        {**good, "x-agent-timestamp": "yesterday"},
        {**good, "x-agent-timestamp": ""},
        {**good, "x-agent-signature": "0x" + "00" * 65},
        {**good, "x-agent-signature": "0x" + "ff" * 65},
        {**good, "x-agent-signature": "zz"},
        {**good, "x-agent-address": "0x" + "0" * 40},
        {**good, "x-agent-address": ""},
    ]

    assert {client.get(path, headers=each).status_code for each in bad} == {401}
    assert client.get(path, headers=good).status_code == 200


def test_a_changed_form_is_not_what_was_signed(app: Flask) -> None:
    client = app.test_client()
    headers = signed("POST", "/api/vm/create", '{"fields":{"name":"a","vmTypeId":"small"}}')
    data = {"name": "b", "vmTypeId": "small"}

    answer = client.post(
        "/api/vm/create",
        data=data,
        headers=headers,
        content_type="multipart/form-data",
    )

    assert answer.status_code == 401


def test_a_signature_opens_no_other_call(app: Flask) -> None:
    path = "/api/vm/instances"

    assert app.test_client().get(path, headers=signed("GET", path)).status_code == 401


def test_a_file_beside_the_signed_one_is_refused(app: Flask) -> None:
    answer = create_signed(app, "dockerfiles", skip_launch="1")

    assert answer.status_code == 400
    assert answer.json["message"].startswith("dockerfiles: is not under the signature")


def test_payment_is_off(app: Flask) -> None:
    path = "/api/agent/add-funds"

    answer = app.test_client().post(path, headers=signed("POST", path))

    assert answer.status_code == answer.json["statusCode"] == 501


# Limits and balances ---------------------------------------------------------------------------


class TestTwoSizesOfOneShape:
    @pytest.fixture
    def config(self, config: Config) -> Config:
        sizes = (
            VmTypeConfig("plain", 1, 2, 20, "", 0.03),
            VmTypeConfig("dear", 1, 2, 20, "", 0.06),
        )
        return replace(
            config,
            admin_token=ADMIN,
            secretvm=SecretVmConfig(vm_types=sizes),
            billing=BillingConfig(enabled=True, credit=0.1),
        )

    def test_a_start_costs_what_the_chosen_one_costs(self, bob: Tenant, admin: Tenant) -> None:
        vm = bob.made(vmTypeId="dear")

        admin.call("PUT", "/balance", json={"project": "bob", "balance": 50_000})

        assert bob.post(f"/vm/{vm['id']}/start").status_code == 402


class TestWithoutAgents:
    @pytest.fixture
    def config(self, config: Config) -> Config:
        return replace(config, admin_token=ADMIN, secretvm=SecretVmConfig(agents=False))

    def test_a_signed_request_is_not_let_in(self, app: Flask, alice: Tenant) -> None:
        answer = create_signed(app)

        assert answer.status_code == answer.json["statusCode"] == 401
        assert alice.create().status_code == 200


class TestTwoCreatesAMinute:
    @pytest.fixture
    def config(self, config: Config) -> Config:
        settings = SecretVmConfig(creates_per_minute=2)
        return replace(config, admin_token=ADMIN, secretvm=settings)

    def test_the_third_is_told_when_to_come_back_and_others_are_not_held_up(
        self, alice: Tenant, bob: Tenant
    ) -> None:
        for _ in range(2):
            alice.made()

        answer = alice.create()

        assert answer.status_code == answer.json["statusCode"] == 429
        assert 1 <= int(answer.headers["Retry-After"]) <= 60
        assert bob.create().status_code == 200
        assert len(alice.get("/vm/instances").json) == 2


class TestWithBilling:
    @pytest.fixture
    def config(self, config: Config) -> Config:
        return replace(config, admin_token=ADMIN, billing=BillingConfig(enabled=True, credit=0.05))

    def test_a_balance_must_cover_an_hour_of_all_that_runs(
        self, alice: Tenant, bob: Tenant, admin: Tenant
    ) -> None:
        first = alice.made(skip_launch=None)
        assert first["vmType"]["pricePerHour"] == 0.03

        refused = alice.create()
        assert refused.status_code == refused.json["statusCode"] == 402
        assert bob.create(vmTypeId="large").status_code == 402
        second = bob.made()
        told = admin.call("PUT", "/balance", json={"project": "bob", "balance": 29_999})
        assert told.json == {"project": "bob", "balance": "29999"}
        assert bob.post(f"/vm/{second['id']}/start").status_code == 402
        assert bob.post(f"/vm/{second['id']}/launch").status_code == 402
        admin.call("PUT", "/balance", json={"project": "bob", "balance": 30_000})
        assert bob.post(f"/vm/{second['id']}/start").status_code == 200
        assert bob.post(f"/vm/{second['id']}/start").status_code == 200

    def test_what_runs_costs_and_what_was_paid_is_not_paid_again(
        self, alice: Tenant, database: Database, config: Config
    ) -> None:
        vm = alice.made(skip_launch=None)
        with database.writing() as session:
            session.get_one(Vm, vm["id"]).started_ms -= 3_600_000  # type: ignore[operator]

        billing.charge(database, config)
        billing.charge(database, config)

        left = int(alice.get("/balance").json["balance"])
        assert 19_990 <= left <= 20_000

    def test_balances_are_set_by_administrators(self, alice: Tenant) -> None:
        body = {"project": "alice", "balance": 10**9}

        assert alice.call("PUT", "/balance", json=body).status_code == 403
