"""The console's pages and forms, as a browser without script sends them."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable
from dataclasses import replace
from html import unescape

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from core.config import AuthConfig, Config
from models.base import Database
from models.vm import Vm
from tests.api.vmm.calls import create
from tests.common import rows

TOKEN = "cm_a-token-of-the-operator"
PAGES = (
    *("/", "/v1", "/beta", "/v0", "/?page=9&size=10", "/?page=x&size=x", "/console/deploy"),
    *("/console/images", "/console/processes", "/console/vm/{}", "/console/vm/{}/update"),
    *("/console/vm/{}/guest", "/console/vm/{}/log", "/console/vm/{}/log?ch=stderr"),
    *("/console/vm/{}/remove", "/console/vm/{}/kill", "/console/deploy?from={}"),
)
TYPED = {
    "name": "web",
    "image": rows.IMAGE,
    "vcpu": "1",
    "memory": "1",
    "memory_unit": "GB",
    "disk_size": "1",
    "compose_mode": "docker",
    "docker_compose_file": "services: {}",
    "tee": "tee",
    "stopped": "on",
}
Send = Callable[..., TestResponse]


def csrf(client: FlaskClient) -> str:
    """What a page of ours puts into its forms."""
    found = re.search(r'name="csrf" value="([\w-]{40,})"', client.get("/console/deploy").text)
    assert found
    return found[1]


@pytest.fixture
def send(client: FlaskClient) -> Send:
    """Sends a form of ours."""

    def post(path: str, **fields: str) -> TestResponse:
        return client.post(path, data={"csrf": csrf(client), **fields})

    return post


def only_vm(client: FlaskClient) -> dict[str, object]:
    answer = client.post("/prpc/Status", json={})
    assert answer.json is not None
    (vm,) = answer.json["vms"]
    found: dict[str, object] = vm
    return found


@pytest.mark.parametrize("path", PAGES)
def test_every_page_answers_with_a_strict_policy(client: FlaskClient, path: str) -> None:
    vm_id = create(client, stopped=True)

    page = client.get(path.format(vm_id))

    assert page.status_code == 200
    policy = page.headers["Content-Security-Policy"]
    assert policy.startswith("default-src 'self'; img-src 'self' data:; frame-ancestors 'none'")
    assert "unsafe" not in policy
    assert ("nonce-" in policy) == ("/log" in path)
    assert page.headers["Cache-Control"] == "no-store"
    assert page.headers["Referrer-Policy"] == "no-referrer"
    assert not re.search(r"<script(?![^>]* src=)|<style|\sstyle=|\son\w+=", page.text)
    assert ("<script" in page.text) == (path != "/v0")


@pytest.mark.parametrize("path", [path for path in PAGES if "{}" in path])
def test_a_page_of_a_vm_that_is_not_there_says_so(client: FlaskClient, path: str) -> None:
    page = client.get(path.format("nobody"))

    assert page.status_code == 404
    assert page.mimetype == "text/html"
    assert "there is no such VM" in page.text


def test_a_list_is_read_a_page_at_a_time(client: FlaskClient) -> None:
    for number in range(12):
        create(client, name=f"vm-{number:02}", stopped=True)

    first, second = (client.get(f"/?size=10&page={page}").text for page in (1, 2))

    assert "vm-09" in first and "vm-10" not in first
    assert "vm-10" in second and "vm-09" not in second
    assert "page 1 of 2" in first
    assert "vm-11" in client.get("/?q=-11").text


@pytest.mark.parametrize(
    "path",
    [
        *("/console/deploy", "/console/vm/{}/update", "/console/vm/{}/start", "/sign-out"),
        *("/console/vm/{}/kill", "/console/vm/{}/remove", "/console/reload"),
        *("/console/images/x/delete", "/console/processes/x/stop", "/console/compose-hash"),
        "/console/env-key",
    ],
)
@pytest.mark.parametrize(
    "given", [{}, {"csrf": ""}, {"csrf": "-"}, {"csrf": "x" * 43}, {"csrf": "ü"}]
)
def test_a_change_that_comes_from_elsewhere_is_refused(
    client: FlaskClient, path: str, given: dict[str, str]
) -> None:
    vm_id = create(client, stopped=True)
    for had_a_page in (False, True):
        if had_a_page:
            csrf(client)

        answer = client.post(path.format(vm_id), data={**TYPED, **given})

        assert answer.status_code == 403
        assert "load it anew" in answer.text
    assert only_vm(client)["status"] == "stopped"


def test_another_browsers_form_is_not_mine(app: Flask, client: FlaskClient) -> None:
    other = app.test_client()

    answer = client.post("/console/deploy", data={**TYPED, "csrf": csrf(other)})

    assert answer.status_code == 403


def test_a_form_makes_a_vm_with_the_checks_of_the_call(client: FlaskClient, send: Send) -> None:
    refused = send("/console/deploy", **{**TYPED, "vcpu": "0", "user_config": "</textarea>kept"})

    assert refused.status_code == 400
    assert 'id="why-vcpu" role="alert">must be at least 1<' in refused.text
    assert "&lt;/textarea&gt;kept" in refused.text

    made = send("/console/deploy", **TYPED, user_config="kept")

    vm = only_vm(client)
    assert (made.status_code, made.location) == (303, f"/console/vm/{vm['id']}")
    has = vm["configuration"]
    assert isinstance(has, dict)
    assert (has["memory"], has["user_config"], has["vcpu"]) == (1024, "kept", 1)


def test_a_browser_with_script_is_led_on_without_a_redirect(client: FlaskClient) -> None:
    data = {**TYPED, "csrf": csrf(client)}

    made = client.post("/console/deploy", data=data, headers={"HX-Request": "true"})

    assert made.status_code == 200
    assert made.headers["HX-Redirect"].startswith("/console/vm/")


def test_a_large_form_is_read_and_a_larger_one_is_not(client: FlaskClient, send: Send) -> None:
    assert send("/console/deploy", **TYPED, user_config="x" * 3_000_000).status_code == 303
    assert send("/console/deploy", **TYPED, user_config="x" * 11_000_000).status_code == 413


def test_verbs_go_back_to_the_page_that_asked_and_never_elsewhere(
    client: FlaskClient, send: Send
) -> None:
    vm_id = create(client, stopped=True)

    for back in ("/?q=a&page=2", f"/console/vm/{vm_id}"):
        assert send(f"/console/vm/{vm_id}/start", back=back).location == back
    for back in ("//evil.test", "https://evil.test", "/\\evil.test", "/\n/evil.test", "", "x"):
        assert send(f"/console/vm/{vm_id}/kill", back=back).location == "/"
    assert "Kill: web" in client.get("/").text
    assert "Kill: web" not in client.get("/").text


def test_a_refused_verb_is_told_on_the_page(client: FlaskClient, send: Send) -> None:
    vm_id = create(client, stopped=True)

    answer = send(f"/console/vm/{vm_id}/shutdown", back="/")

    assert answer.status_code == 303
    assert "VM is not running (it is stopped)" in client.get("/").text


def test_documents_are_downloaded_byte_for_byte(client: FlaskClient) -> None:
    compose = '{"docker_compose_file":"a\\r\\n<b>"}\r\n'
    vm_id = create(client, compose_file=compose, user_config="ü\r\n", stopped=True)

    for name, text in (("app-compose.json", compose), ("user-config", "ü\r\n")):
        answer = client.get(f"/console/vm/{vm_id}/{name}")
        assert answer.data == text.encode()
        assert answer.headers["Content-Disposition"] == f'attachment; filename="{name}"'
        assert answer.mimetype == "application/octet-stream"


def test_an_update_that_is_refused_shows_what_is_locked(
    client: FlaskClient, send: Send, database: Database
) -> None:
    vm_id = create(client, ports=[])

    page = send(
        f"/console/vm/{vm_id}/update",
        vm=vm_id,
        compose_mode="raw",
        compose_file="{",
        tee="dstack-tdx",
    )

    assert page.status_code == 400
    assert "must be JSON" in page.text
    assert re.search(r'name="memory"[^>]* value="256"', page.text)
    with database.reading() as session:
        assert session.get_one(Vm, vm_id).compose_file == rows.COMPOSE


def test_an_update_of_nothing_calls_nothing(client: FlaskClient, send: Send) -> None:
    vm_id = create(client, stopped=True)
    fields = {"compose_mode": "docker", "docker_compose_file": "services: {}", "tee": "dstack-tdx"}

    send(f"/console/vm/{vm_id}/update", vm=vm_id, public_tcbinfo="on", **fields)

    assert "Nothing was changed" in client.get("/").text
    assert [each["event"] for each in only_vm(client)["events"]] == []  # type: ignore[attr-defined]


def test_a_copy_of_a_simulated_vm_is_offered_with_its_platform(client: FlaskClient) -> None:
    vm_id = create(client, stopped=True, simulated_tee="dstack-amd-sev-snp")

    for page in (f"/console/deploy?from={vm_id}", f"/console/vm/{vm_id}/update"):
        assert 'value="dstack-amd-sev-snp" selected' in client.get(page).text


def test_what_is_previewed_is_what_is_made(client: FlaskClient, send: Send) -> None:
    preview = send("/console/compose-hash", **TYPED).text
    send("/console/deploy", **TYPED)

    has = only_vm(client)["configuration"]
    assert isinstance(has, dict)
    answer = client.post("/prpc/GetComposeHash", json=has)
    assert answer.json is not None
    assert f'<code class="hash">{answer.json["hash"]}</code>' in preview
    assert f"<code>{has['app_id']}</code>" in preview


def test_the_command_that_ran_can_be_copied_into_a_shell(client: FlaskClient) -> None:
    assert "It was never started." in client.get(f"/console/vm/{create(client, stopped=True)}").text
    vm_id = create(client)

    page = client.get(f"/console/vm/{vm_id}").text

    found = re.search(r'<pre id="command">(.*?)</pre>', page, re.DOTALL)
    assert found
    launched = client.application.extensions["vms"].command(vm_id)
    assert shlex.split(unescape(found[1]).replace("\\\n", "")) == launched
    assert ["-name", vm_id] == launched[launched.index("-name") :][:2]


def test_broken_images_are_shown_with_the_reason(client: FlaskClient, config: Config) -> None:
    (config.image.path / "broken-1").mkdir()

    page = client.get("/console/images").text

    assert rows.IMAGE in page
    assert re.search(r"<dt>broken-1</dt><dd[^>]*>.*metadata\.json", page)


class TestWithAuthentication:
    @pytest.fixture
    def config(self, config: Config) -> Config:
        return replace(config, auth=AuthConfig(enabled=True, tokens=(TOKEN,)))

    def test_a_stranger_is_led_to_the_form_and_back(self, client: FlaskClient) -> None:
        asked = client.get("/console/images?x=1&y=2")
        assert (asked.status_code, asked.location) == (
            302,
            "/sign-in?next=/console/images?x%3D1%26y%3D2",
        )
        assert client.post("/console/deploy", data=TYPED).location == "/sign-in"

        signed = client.post("/sign-in", data={"token": TOKEN, "next": "/console/images?x=1"})

        assert signed.location == "/console/images?x=1"
        assert client.post("/sign-in", data={"token": TOKEN, "next": "//x"}).location == "/"

    @pytest.mark.parametrize("path", ["/", "/v1", "/beta", "/v0", "/?q=x"])
    def test_the_addresses_of_the_console_are_open_and_show_nothing_but_the_form(
        self, client: FlaskClient, path: str
    ) -> None:
        headers = {"Authorization": f"Bearer {TOKEN}"}
        client.post("/prpc/CreateVm", json=rows.request(stopped=True), headers=headers)

        page = client.get(path)

        assert (page.status_code, page.mimetype) == (200, "text/html")
        assert f'name="next" value="{path}"' in page.text
        assert rows.request()["name"] not in page.text
        assert client.head(path).status_code == 200

    def test_a_page_whose_session_ended_leads_to_the_form(self, client: FlaskClient) -> None:
        answer = client.get("/", headers={"HX-Request": "true"})

        assert (answer.status_code, answer.headers["HX-Redirect"]) == (401, "/sign-in")

    def test_signing_out_forgets_the_caller(self, client: FlaskClient) -> None:
        client.post("/sign-in", data={"token": TOKEN})
        assert "admin" in client.get("/").text

        client.post("/sign-out", data={"csrf": csrf(client)})

        assert 'action="/sign-in"' in client.get("/").text
