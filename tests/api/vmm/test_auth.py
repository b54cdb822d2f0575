"""Who may call what: every route of the application, for every kind of caller."""

from __future__ import annotations

import base64
import logging
import re
import uuid
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import BytesIO
from pathlib import Path
from typing import Any

import bcrypt
import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.routing import Rule
from werkzeug.test import TestResponse

from accounts import directory
from accounts.roles import GlobalRole, ProjectRole
from app import PAGES, SECRETVM, SURFACES, VMM, Surface, create_app
from core.config import AuthConfig, Config
from image.registry import Image
from models.base import Database
from tests.api.vmm.calls import create
from tests.common import rows
from vmm import guest_routes, routes
from vmm.host import Host

TOKEN = "cm_a-token-of-the-operator"
PASSWORD = "correct horse"

# What each kind of caller meets, by the beginning of the route's name; the longest one counts.  A route that
# no row fits fails the test: whoever adds one says here for whom it is.
# 0 is any answer but a refusal of that caller.
OPERATORS = {
    "nobody": 401, "wrong": 401, "stranger": 403, "member": 403, "operator": 0, "browser": 401,
    "tenant": 401,
}  # fmt: skip
OPEN = dict.fromkeys(OPERATORS, 0)
# Whoever has a key: what is another's is not found, and that is tested with each interface.
TENANTS = {**dict.fromkeys(OPERATORS, 401), "stranger": 0, "member": 0, "operator": 0}
TENANTS_PAGES = {**dict.fromkeys(OPERATORS, 302), "browser": 0, "tenant": 0}
# The keys of a refusal, by surface.
BODIES = ((VMM, {"message", "error"}), (SECRETVM, {"statusCode", "message"}))
ROWS: dict[str, dict[str, int]] = {
    "vmm.": OPERATORS,
    "guest.": OPERATORS,
    "metrics.": OPERATORS,
    "logs.": {**OPERATORS, "member": 0, "browser": 0, "tenant": 0},
    "openapi.": {**OPERATORS, "stranger": 0, "member": 0, "browser": 0, "tenant": 0},
    # Pages take a browser's session alone, whatever token a header shows.
    "console.": {**dict.fromkeys(OPERATORS, 302), "browser": 0, "tenant": 403},
    # Who has not signed in finds the form there; a tenant is led to their own pages.
    "console.index": {**OPEN, "tenant": 302},
    "console.plain": {**OPEN, "tenant": 403},
    "secretvm_console.": TENANTS_PAGES,
    "apps_console.": TENANTS_PAGES,
    "runs_console.": TENANTS_PAGES,
    "secretvm_console.verifier": OPEN,
    "secretvm_console.examine": OPEN,
    "console.sign_in_page": OPEN,
    "console.sign_in": dict.fromkeys(OPERATORS, 401),
    "static": OPEN,
    "verify.": OPEN,
    "verification.": OPEN,
    "apps.": TENANTS,
    "bare_apps.": TENANTS,
    "cvms.": TENANTS,
    "cvm_updates.": TENANTS,
    "app_host.": TENANTS,
    # Needs no key but a link that the service made, which nobody has here.
    "app_logs.": dict.fromkeys(OPERATORS, 401),
    "secretvm.": TENANTS,
    "clusters.": TENANTS,
    "secretvm.terminate": {**TENANTS, "member": 403},
    "secretvm.add_funds": {
        **dict.fromkeys(OPERATORS, 501),
        "nobody": 401,
        "wrong": 401,
        "browser": 401,
        "tenant": 401,
    },
    # Its clients know a wrong token by 403; who may do what in a project is tested with the interface.
    "runs": {**TENANTS, "wrong": 403},
    "runs_server.": OPEN,
    "runs_page.": OPEN,
    "runs_document.": OPEN,
    "secretvm_document.": OPEN,
    "apps_document.": OPEN,
    "secretvm.session": OPEN,
    "secretvm.types": OPEN,
    "secretvm.vm_templates": OPEN,
    "secretvm.all_templates": OPEN,
    "secretvm.encryption_keys": OPEN,
    "secretvm.public_eip8004": OPEN,
    "secretvm.prices_of_models": OPEN,
    "secretvm.coin_price": OPEN,
    "secretvm.coin_price_history": OPEN,
}


@pytest.fixture
def config(config: Config, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Config:
    file = tmp_path / "htpasswd"
    hashed = bcrypt.hashpw(PASSWORD.encode(), bcrypt.gensalt(4)).decode()
    # What a name that nobody has is compared with: at its full cost the many routes would take minutes.
    monkeypatch.setattr("accounts.htpasswd._NOBODY", hashed)
    file.write_text(f"carol:{hashed}\n")
    return replace(config, auth=AuthConfig(True, (TOKEN,), file))


def issue(database: Database, name: str, *, role: GlobalRole = GlobalRole.USER) -> str:
    """A token of a new user."""
    with database.writing() as session:
        user = directory.add_user(session, name, role=role)
        return directory.add_token(session, user, name="", made_by="test")[1]


def join(database: Database, name: str, project: str) -> None:
    """Makes a user a member of a project, with the least role."""
    with database.writing() as session:
        found = directory.project_named(session, project)
        directory.set_member(session, found, directory.user_named(session, name), ProjectRole.USER)


def bearer(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"}


def basic(user: str, password: str) -> dict[str, str]:
    return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}


@pytest.fixture
def kinds(database: Database, config: Config, app: Flask) -> dict[str, list[dict[str, str]]]:
    """The headers of each kind of caller; the VM is in project main."""
    callers = {
        "nobody": [{}, {"Authorization": ""}, {"Cookie": "session=forged"}],
        "wrong": [
            bearer("wrong"),
            basic("admin", "wrong"),
            basic("carol", "wrong"),
            {"Authorization": "Basic \xff"},
            {"X-Admin-Token": "wrong"},
        ],
        "stranger": [bearer(issue(database, "alice"))],
        "member": [bearer(issue(database, "bob"))],
        "operator": [
            bearer(TOKEN),
            {"X-Admin-Token": (config.data_dir / "admin-token").read_text().strip()},
            bearer(issue(database, "boss", role=GlobalRole.ADMIN)),
            basic("carol", PASSWORD),
        ],
    }
    join(database, "bob", "main")
    callers["browser"] = [signed_in(app, TOKEN)]
    callers["tenant"] = [signed_in(app, callers["member"][0]["Authorization"].split()[1])]
    return callers


def signed_in(app: Flask, token: str) -> dict[str, str]:
    """The headers of a browser whose person gave a token."""
    browser = app.test_client()
    browser.post("/sign-in", data={"token": token})
    cookie = browser.get_cookie("session")
    assert cookie is not None
    return {"Cookie": f"session={cookie.value}"}


def calls(app: Flask, vm_id: str) -> Iterator[tuple[Rule, str, str]]:
    """Every rule with every method it takes, and a path that leads to it."""
    for rule in app.url_map.iter_rules():
        path = rule.rule.replace("<vm_id>", vm_id)
        path = re.sub(r"<any\((\w+)[^)]*\):\w+>", r"\1", path)  # the first of a choice
        path = re.sub(r"<int:\w+>", "1", path)
        path = re.sub(r"<(path:)?\w+>", "Status", path)
        assert "<" not in path, f"{path}: say here what leads to it"
        for method in sorted(rule.methods or ()):
            yield rule, method, f"{path}?id={vm_id}" if path == "/logs" else path


def row(endpoint: str) -> dict[str, int]:
    """The row of a route."""
    fitting = [begin for begin in ROWS if endpoint.startswith(begin)]
    assert fitting, f"{endpoint} has no row: for whom is it?"
    return ROWS[max(fitting, key=len)]


def test_every_route_is_for_whom_its_row_says(
    app: Flask, client: FlaskClient, kinds: dict[str, list[dict[str, str]]]
) -> None:
    vm_id, seen = create_with_token(client), set()
    for rule, method, path in calls(app, vm_id):
        for kind, callers in kinds.items():
            for headers in callers:
                answer = app.test_client(use_cookies=False).open(
                    path, method=method, headers=headers
                )

                # One call gives callers back what they came with: its clients ask it for that.
                assert TOKEN not in answer.text or rule.endpoint == "runs_users.get_my_user"
                what = (rule.endpoint, method, path, kind, headers)
                if method == "OPTIONS" and answer.status_code == 200:
                    assert not answer.data, what  # Flask's own: it names the methods
                elif row(rule.endpoint) is OPEN:
                    assert_is(answer, 0, what)
                elif "X-Admin-Token" in headers and surface_of(path).for_tenants:
                    assert_is(answer, 401, what)  # a header of the VMM's alone
                elif kind in ("browser", "tenant") and method not in ("GET", "HEAD"):
                    # It came from no page of ours.
                    assert answer.status_code in (401, 403, 405), what
                else:
                    assert_is(answer, row(rule.endpoint)[kind], what)
        seen.add(rule.endpoint)
    assert {"vmm.call", "guest.call", "logs.logs", "console.index", "static"} <= seen


def surface_of(path: str) -> Surface:
    """The surface that a path belongs to."""
    return next((each for each in SURFACES if each.has(path)), VMM)


def assert_is(answer: TestResponse, expected: int, what: object) -> None:
    """Compares a status with that of a row, and the form of a refusal with its surface's."""
    if expected == 0:
        assert answer.status_code not in (401, 403), (what, answer.text)
        assert answer.status_code not in (500, 501, 505), (what, answer.text)
        return
    assert answer.status_code == expected, (what, answer.text)
    surface = surface_of(answer.request.path)
    if expected == 302 or surface is PAGES:
        return
    if expected == 401:
        assert answer.headers["WWW-Authenticate"] == surface.challenge
    if answer.request.method != "HEAD":
        assert answer.json is not None, what
        for one, keys in BODIES:
            assert surface is not one or set(answer.json) == keys, what


@pytest.mark.parametrize("kind", ["stranger", "member"])
def test_no_call_of_the_operators_tells_a_tenant_anything(
    client: FlaskClient, kinds: dict[str, list[dict[str, str]]], kind: str
) -> None:
    vm_id = create_with_token(client)
    paths = [f"/prpc/{name}" for name in routes.service.methods]
    paths += [f"/guest/{name}" for name in guest_routes.service.methods] + ["/prpc/Nope"]
    for path in paths:
        answers = [
            client.post(path, json={"id": each}, headers=kinds[kind][0])
            for each in (vm_id, str(uuid.uuid4()))
        ]

        assert [each.status_code for each in answers] == [403, 403], path
        assert answers[0].data == answers[1].data
    assert len(paths) > 15


def test_a_log_of_another_project_is_like_one_of_no_vm(
    client: FlaskClient, kinds: dict[str, list[dict[str, str]]]
) -> None:
    ids = (create_with_token(client), str(uuid.uuid4()), "", "../../etc/passwd")
    stranger, member = kinds["stranger"][0], kinds["member"][0]

    for follow in ("", "&follow=true"):
        answers = [client.get(f"/logs?id={each}{follow}", headers=stranger) for each in ids]
        assert {each.status_code for each in answers} == {403}
        assert len({each.data for each in answers}) == 1
    assert [client.get(f"/logs?id={each}", headers=member).status_code for each in ids] == [
        200, 403, 403, 403,
    ]  # fmt: skip


def test_a_followed_log_ends_when_its_reader_is_put_out(
    client: FlaskClient, app: Flask, database: Database, kinds: dict[str, list[dict[str, str]]]
) -> None:
    vm_id = create_with_token(client)
    log = app.extensions["vms"].reconciler.workdir(vm_id).log("serial")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.write_text("before\n")
    answer = client.get(f"/logs?id={vm_id}&follow=true", headers=kinds["member"][0], buffered=False)
    pieces = answer.iter_encoded()
    assert "before" in next(piece for piece in pieces if piece).decode()

    with database.writing() as session:
        for token in directory.tokens_of(session, directory.user_named(session, "bob")):
            directory.revoke_token(session, token.id)
    with log.open("a") as more:
        more.write("after\n")

    assert b"after" not in b"".join(pieces)
    answer.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {TOKEN}"},
        {"X-Admin-Token": TOKEN},
        basic("me", TOKEN),
        basic(TOKEN, ""),
        basic("carol", PASSWORD),
    ],
)
def test_a_token_is_taken_in_each_form(client: FlaskClient, headers: dict[str, str]) -> None:
    assert client.post("/prpc/Status", headers=headers).status_code == 200


def test_the_administrators_token_is_always_valid(client: FlaskClient, config: Config) -> None:
    token = (config.data_dir / "admin-token").read_text().strip()

    assert client.get("/prpc/Version", headers={"X-Admin-Token": token}).status_code == 200


def test_a_token_in_the_query_is_taken_where_nothing_is_posted(client: FlaskClient) -> None:
    vm_id = create_with_token(client)

    assert client.get(f"/prpc/Version?token={TOKEN}").status_code == 200
    assert client.get(f"/logs?id={vm_id}&token={TOKEN}").status_code == 200
    assert client.get("/prpc/Version?token=wrong").status_code == 401
    assert client.post(f"/prpc/Version?token={TOKEN}").status_code == 401
    assert client.get(f"/console/images?token={TOKEN}").status_code == 302


def test_a_token_in_the_query_stays_out_of_the_log_and_of_answers(
    client: FlaskClient, app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("a bug")

    app.extensions["vms"].__class__.meta, kept = fail, app.extensions["vms"].__class__.meta
    try:
        with caplog.at_level(logging.DEBUG):
            answers = [
                client.get(f"{path}?token={TOKEN}&id=x")
                for path in ("/prpc/GetMeta", "/prpc/Nope", "/logs", "/nowhere", "/prpc/GetInfo")
            ]
    finally:
        app.extensions["vms"].__class__.meta = kept

    assert [each.status_code for each in answers] == [500, 404, 404, 404, 200]
    assert "a bug" in caplog.text
    assert TOKEN not in caplog.text + "".join(each.text for each in answers)


def test_a_vm_belongs_to_the_project_of_the_operators_token(
    client: FlaskClient, app: Flask, database: Database
) -> None:
    with database.writing() as session:
        boss = directory.add_user(session, "boss", role=GlobalRole.ADMIN)
        own = directory.project_named(session, "boss")
        tokens = [
            directory.add_token(session, boss, name="", made_by="x", project=project)[1]
            for project in (own, None)
        ]
        main = directory.project_named(session, "main")

    for token, project in ((tokens[0], own), (tokens[1], main), (TOKEN, main)):
        body = rows.request(stopped=True)
        answer = client.post("/prpc/CreateVm", json=body, headers=bearer(token))
        assert answer.json is not None
        assert app.extensions["vms"].project_of(answer.json["id"]) == project.id


@pytest.mark.parametrize(
    "end",
    [
        lambda session, user, token: directory.revoke_token(session, token.id),
        lambda session, user, token: directory.change_user(session, user, active=False),
        lambda session, user, token: directory.remove_user(session, user),
        lambda session, user, token: directory.change_user(session, user, role=GlobalRole.USER),
    ],
    ids=["revoked", "deactivated", "removed", "demoted"],
)
def test_an_operator_who_is_put_out_is_out_with_token_and_browser(
    client: FlaskClient, database: Database, end: Callable[..., Any]
) -> None:
    token = issue(database, "boss", role=GlobalRole.ADMIN)
    assert client.get("/prpc/Version", headers=bearer(token)).status_code == 200
    assert client.post("/sign-in", data={"token": token}).status_code == 302
    assert client.get("/").status_code == 200

    with database.writing() as session:
        user = directory.user_named(session, "boss")
        end(session, user, directory.tokens_of(session, user)[0])

    assert client.get("/prpc/Version", headers=bearer(token)).status_code in (401, 403)
    assert client.get("/console/images").status_code in (302, 403)


def test_a_tenant_who_signs_in_sees_the_pages_of_tenants_alone(
    client: FlaskClient, database: Database
) -> None:
    answer = client.post("/sign-in", data={"token": issue(database, "alice")})

    assert (answer.status_code, answer.location) == (302, "/")
    assert client.get("/").location == "/console/apps"
    refusal = client.get("/console/images")
    assert refusal.status_code == 403
    assert "this page is for operators, and alice is none" in refusal.text
    shown = client.get("/console/apps").text
    assert "alice" in shown and "/console/images" not in shown and "/console/deploy" not in shown


@pytest.mark.parametrize("end", ["revoke", "deactivate", "put out of the project"])
def test_a_tenant_who_is_put_out_sees_no_page_of_theirs_any_more(
    client: FlaskClient, database: Database, end: str
) -> None:
    create_with_token(client)
    token = issue(database, "bob")
    join(database, "bob", "main")
    client.post("/sign-in", data={"token": token})
    assert 'id="app-' in client.get("/console/apps").text

    with database.writing() as session:
        bob = directory.user_named(session, "bob")
        if end == "revoke":
            directory.revoke_token(session, directory.tokens_of(session, bob)[0].id)
        elif end == "deactivate":
            directory.change_user(session, bob, active=False)
        else:
            directory.remove_member(session, directory.project_named(session, "main"), bob)

    answer = client.get("/console/apps")
    assert 'id="app-' not in answer.text
    assert answer.status_code == (200 if end.startswith("put") else 302)


def test_without_authentication_what_is_somebodys_wants_a_token_all_the_same(
    config: Config, host: Host, database: Database, image: Image
) -> None:
    app = create_app(replace(config, auth=AuthConfig(False)), host)
    client = app.test_client()

    assert client.get("/").status_code == 200
    for path in ("/console/apps", "/console/clusters", "/console/runs", "/console/keys"):
        assert client.get(path).location == f"/sign-in?next={path}"
    client.post("/sign-in", data={"token": issue(database, "alice")})
    assert "alice" in client.get("/console/keys").text
    assert client.get("/console/images").status_code == 403


def test_a_password_signs_in_too(client: FlaskClient) -> None:
    assert client.post("/sign-in", data={"user": "carol", "token": "wrong"}).status_code == 401

    answer = client.post("/sign-in", data={"user": "carol", "token": PASSWORD})

    assert answer.status_code == 302
    assert PASSWORD not in answer.headers["Set-Cookie"]
    assert client.get("/").status_code == 200


@pytest.mark.parametrize(("scheme", "is_secure"), [("http", False), ("https", True)])
def test_a_cookie_that_came_over_tls_stays_there(
    client: FlaskClient, scheme: str, is_secure: bool
) -> None:
    answer = client.post("/sign-in", base_url=f"{scheme}://localhost", data={"token": TOKEN})

    assert ("Secure" in answer.headers["Set-Cookie"]) == is_secure


@pytest.mark.parametrize("path", ["/console/x", "/console/vm/nope", "/console"])
def test_a_page_says_no_in_a_page(client: FlaskClient, path: str) -> None:
    stranger = client.get(path)
    assert stranger.status_code in (302, 401)
    assert "Basic" not in stranger.headers.get("WWW-Authenticate", "")
    client.post("/sign-in", data={"token": TOKEN})

    answer = client.get(path)

    assert answer.status_code == 404
    assert answer.mimetype == "text/html"
    assert "<h1" in answer.text
    assert "default-src 'self'" in answer.headers["Content-Security-Policy"]
    assert client.put("/sign-in").mimetype == "text/html"
    for other in ("/prpc/Nope", "/logs?id=x", "/nowhere"):
        refusal = client.get(other, headers=bearer(TOKEN))
        assert (refusal.status_code, refusal.mimetype) == (404, "application/json")


def test_who_tries_too_many_passwords_is_told_when_to_come_back(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("accounts.htpasswd.WAIT_S", 0)
    checking = client.application.extensions["accounts"].htpasswd._hashing
    with checking:
        answer = client.get("/prpc/Version", headers=basic("carol", "wrong"))

    assert (answer.status_code, answer.headers["Retry-After"]) == (429, "1")


@pytest.mark.parametrize("path", ["/nowhere", "/prpc/Nope", "/prpc/", "/api-docs/x"])
def test_a_stranger_does_not_learn_what_there_is(client: FlaskClient, path: str) -> None:
    assert client.get(path).status_code == 401
    assert client.get(path, headers={"X-Admin-Token": TOKEN}).status_code == 404


def test_a_strangers_upload_is_not_read(client: FlaskClient) -> None:
    class Unread(BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise AssertionError("the body was read")

        readline = readlines = read1 = readinto = read  # type: ignore[assignment]

    answer = client.post("/prpc/CreateVm", input_stream=Unread(), content_length=10**9)

    assert answer.status_code == 401


def test_a_browser_signs_in_with_a_token_and_keeps_none(client: FlaskClient) -> None:
    assert 'action="/sign-in"' in client.get("/").text
    refusal = client.post("/sign-in", data={"token": "wrong"})
    assert refusal.status_code == 401
    assert "not a valid token" in refusal.text

    signed = client.post("/sign-in", data={"token": f" {TOKEN} "})

    assert (signed.status_code, signed.location) == (302, "/")
    cookie = signed.headers["Set-Cookie"]
    assert "HttpOnly" in cookie
    assert "SameSite=Strict" in cookie
    assert TOKEN not in cookie
    assert client.get("/").status_code == 200


def test_a_signed_in_browser_reads_and_does_not_act(client: FlaskClient) -> None:
    vm_id = create_with_token(client)
    client.post("/sign-in", data={"token": TOKEN})

    assert client.get(f"/console/vm/{vm_id}").status_code == 200
    assert client.get(f"/logs?id={vm_id}").status_code == 200
    for path in ("/prpc/RemoveVm", "/prpc/Status", "/guest/Info"):
        assert client.post(path, json={"id": vm_id}).status_code == 401
    assert client.get(f"/prpc/RemoveVm?id={vm_id}").status_code == 401


def create_with_token(client: FlaskClient) -> str:
    answer = client.post(
        "/prpc/CreateVm", json=rows.request(stopped=True), headers={"X-Admin-Token": TOKEN}
    )
    assert answer.json is not None
    vm_id: str = answer.json["id"]
    return vm_id


def test_a_session_of_another_host_is_none(
    client: FlaskClient, config: Config, database: Database, host: Host, image: Image
) -> None:
    client.post("/sign-in", data={"token": TOKEN})
    cookie = client.get_cookie("session")
    assert cookie is not None
    (config.data_dir / "session-key").unlink()

    other = create_app(config, host).test_client()
    other.set_cookie("session", cookie.value)

    assert 'action="/sign-in"' in other.get("/").text


def test_without_authentication_everybody_is_the_operator(
    config: Config, database: Database, host: Host, image: Image
) -> None:
    app = create_app(replace(config, auth=AuthConfig(enabled=False)), host)
    client = app.test_client()

    create(client, stopped=True)
    assert client.get("/").status_code == 200
