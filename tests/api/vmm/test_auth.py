"""Who may call what: every route of the application, with and without a credential."""

from __future__ import annotations

import base64
from collections.abc import Iterator
from dataclasses import replace
from io import BytesIO

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.routing import Rule

from app import create_app
from core.config import AuthConfig, Config
from image.registry import Image
from models.base import Database
from tests.api.vmm.calls import create
from tests.common import rows
from vmm.host import Host

TOKEN = "cm_a-token-of-the-operator"
# What a browser needs before it can show a token; a route that is not named here asks for one.
OPEN = {
    "static": 404,
    "console.index": 302,
    "console.details": 302,
    "console.sign_in_page": 200,
    "console.sign_in": 401,
}


@pytest.fixture
def config(config: Config) -> Config:
    return replace(config, auth=AuthConfig(enabled=True, tokens=(TOKEN,)))


def calls(app: Flask) -> Iterator[tuple[Rule, str, str]]:
    """Every rule with every method it takes, and a path that leads to it."""
    for rule in app.url_map.iter_rules():
        path = rule.rule
        for name in rule.arguments:
            for kind in ("", "path:"):
                path = path.replace(f"<{kind}{name}>", "Status")
        for method in sorted(rule.methods or ()):
            yield rule, method, path


def test_no_route_answers_without_a_valid_credential(app: Flask) -> None:
    seen = set()
    wrong = base64.b64encode(b"admin:wrong").decode()
    for rule, method, path in calls(app):
        for headers in (
            {},
            {"Authorization": "Bearer wrong"},
            {"Authorization": f"Basic {wrong}"},
            {"Authorization": "Basic \xff"},
            {"Authorization": ""},
            {"X-Admin-Token": "wrong"},
            {"Cookie": "session=forged"},
        ):
            answer = app.test_client().open(path, method=method, headers=headers)

            if rule.endpoint in OPEN:
                assert answer.status_code in (OPEN[rule.endpoint], 200), (rule, method)
                assert TOKEN not in answer.text
                continue
            assert answer.status_code == 401, (rule, method, headers)
            assert answer.headers["WWW-Authenticate"] == 'Basic realm="casemate"'
            if method != "HEAD":
                assert answer.json is not None
                assert set(answer.json) == {"message", "error"}
        seen.add(rule.endpoint)

    assert set(OPEN) < seen
    assert len(seen) > len(OPEN) + 2


def test_every_route_answers_with_a_valid_credential(app: Flask) -> None:
    for _, method, path in calls(app):
        answer = app.test_client().open(
            path, method=method, headers={"Authorization": f"Bearer {TOKEN}"}
        )

        assert answer.status_code != 401 or path == "/sign-in"
        assert answer.status_code < 500


@pytest.mark.parametrize(
    "headers",
    [
        {"Authorization": f"Bearer {TOKEN}"},
        {"X-Admin-Token": TOKEN},
        {"Authorization": f"Basic {base64.b64encode(f'me:{TOKEN}'.encode()).decode()}"},
        {"Authorization": f"Basic {base64.b64encode(f'{TOKEN}:'.encode()).decode()}"},
    ],
)
def test_a_token_is_taken_in_each_form(client: FlaskClient, headers: dict[str, str]) -> None:
    assert client.post("/prpc/Status", headers=headers).status_code == 200


def test_the_administrators_token_is_always_valid(client: FlaskClient, config: Config) -> None:
    token = (config.data_dir / "admin-token").read_text().strip()

    assert client.get("/prpc/Version", headers={"X-Admin-Token": token}).status_code == 200


def test_a_token_in_the_query_is_none(client: FlaskClient) -> None:
    assert client.get(f"/prpc/Version?token={TOKEN}").status_code == 401


@pytest.mark.parametrize("path", ["/nowhere", "/prpc/Nope", "/prpc/", "/api-docs/", "/console/x"])
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
    assert client.get("/").location == "/sign-in"
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

    assert other.get("/").location == "/sign-in"


def test_without_authentication_everybody_is_the_operator(
    config: Config, database: Database, host: Host, image: Image
) -> None:
    app = create_app(replace(config, auth=AuthConfig(enabled=False)), host)
    client = app.test_client()

    create(client, stopped=True)
    assert client.get("/").status_code == 200
