"""Input that wants to break something: names, depths, amounts, numbers, texts that are shown."""

from __future__ import annotations

import json
import re
import string
import time
from typing import Any
from urllib.parse import quote

import pytest
from flask.testing import FlaskClient
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from core.config import Config
from models.base import Database
from models.vm import Vm
from tests.api.vmm.calls import ask, create, post, refused
from tests.common import rows
from vmm.hostapi import HostApi

ALPHABET = set(string.ascii_letters + string.digits + "-_. @~!$^()")
SCRIPT = "<script>alert(1)</script>"
NAMES = [
    *("../x", "..\\x", "/etc/passwd", "a/b", "a\\b", "%2e%2e%2f", "..%c0%af", "a\0b", "\0"),
    *("a\nb", "a\r\nb", "a\tb", "\x1b[31mred", "\x7f", "a" * 65, "a" * 300, "a" * 100_000),
    *("a;b", "a,b", "a=b", "a|b", "a&b", "`id`", "$(id)'", "a'b", 'a"b', "<b>", SCRIPT),
    *(
        "{{7*7}}",
        "{%x%}",
        "#{x}",
        "а",
        "ｗｅｂ",
        "w\u200beb",
        "\u202egnp.exe",
        "İ",
        "🙂",
        "\ufeffa",
    ),
    *("-name", "--help", "-", ".", "..", "...", " ", "a ", " a", "$HOME", "$(id)", "~root", "!x"),
    *(
        "if=none",
        "file:x",
        "json:{}",
        "nbd://x",
        "con",
        "nul",
        "a" * 64,
        "exec:id",
        "x,readonly=on",
    ),
]


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_name_is_refused_or_is_only_a_name(
    client: FlaskClient, config: Config, name: str
) -> None:
    answer = post(client, "/prpc/CreateVm", **rows.request(name=name, stopped=True))

    if answer.status_code == 400:
        assert answer.json is not None
        assert answer.json["message"].startswith("name: ")
        return
    assert answer.status_code == 200
    assert set(name.strip()) <= ALPHABET
    (folder,) = [path for path in config.run_path.iterdir() if path.is_dir()]
    assert answer.json == {"id": folder.name}


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_image_name_is_refused(client: FlaskClient, name: str) -> None:
    text = refused(client, "/prpc/CreateVm", 400, **rows.request(image=name))

    assert text.startswith("image: ")


@pytest.mark.parametrize("name", NAMES)
def test_a_hostile_search_finds_nothing_and_breaks_nothing(client: FlaskClient, name: str) -> None:
    answer = post(client, "/prpc/Status", keyword=name, ids=[name])

    assert answer.status_code == (400 if "\0" in name else 200)
    page = client.get("/", query_string={"q": name})
    assert page.status_code == (400 if "\0" in name else 200)


def deep(opening: str, depth: int) -> str:
    closing = "]" if opening.endswith("[") else "}"
    return opening * depth + "1" + closing * depth


@pytest.mark.parametrize(
    "body",
    [
        deep("[", 10_000),
        deep('{"a":', 10_000),
        deep('{"gpus":', 10_000),
        json.dumps({"ports": [{}] * 1_000_000}),
        json.dumps({"ports": [[]] * 1_000_000}),
        json.dumps({"ids": [""] * 1_000_000}),
        json.dumps({"networks": [{"mode": "user"}] * 100_000}),
        json.dumps({"gpus": {"gpus": [{"slot": "x"}] * 100_000}}),
        json.dumps({"kms_urls": ["x"] * 1_000_000}),
        json.dumps({str(number): number for number in range(200_000)}),
        '{"vcpu": ' + "9" * 1_000_000 + "}",
        '{"vcpu": 1e999999}',
        '{"vcpu": -1e-999999}',
        '{"name": "' + "\\u0000" * 100_000 + '"}',
        '{"name": "\\ud800"}',
        '{"compose_file": "' + "[" * 1_000_000 + '"}',
        '{"compose_file": "' + '{\\"a\\":' * 200_000 + '"}',
        '{"encrypted_env": "' + "0" * 9_000_000 + '"}',
        '{"app_id": "0x' + "a" * 1_000_000 + '"}',
    ],
    ids=lambda body: f"{body[:30]}...{len(body)}",
)
def test_depths_and_amounts_are_refused_soon(client: FlaskClient, body: str) -> None:
    began = time.thread_time()
    answer = client.post("/prpc/CreateVm", data=body, content_type="application/json")

    assert answer.status_code == 400
    assert len(answer.data) < 100_000
    assert time.thread_time() - began < 5  # it takes a fraction of a second


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)
fields = st.sampled_from([*rows.request(), "ports", "gpus", "networking", "app_id", "kms_urls"])


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(st.dictionaries(fields | st.text(), anything, max_size=4))
def test_no_field_of_any_kind_is_a_fault_of_the_service(
    client: FlaskClient, wrong: dict[str, Any]
) -> None:
    body = json.dumps(rows.request(stopped=True) | wrong | {"stopped": True})

    answer = client.post("/prpc/CreateVm", data=body)

    assert answer.status_code in (200, 400)
    assert answer.json is not None


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=150)
@given(
    st.sampled_from(["/prpc/", "/guest/", "/logs", "/console/vm/", "/"]),
    st.text(max_size=20),
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH"]),
    st.binary(max_size=50),
    st.dictionaries(st.sampled_from(["id", "ch", "lines", "json"]), st.text(max_size=9)),
)
def test_no_request_is_a_fault_of_the_service(
    client: FlaskClient, surface: str, rest: str, method: str, data: bytes, query: dict[str, str]
) -> None:
    path = surface + quote(rest, safe="")
    answer = client.open(path, method=method, data=data, query_string=query)

    assert answer.status_code < 500


@pytest.fixture
def told(client: FlaskClient, config: Config, database: Database) -> str:
    """A VM whose guest said what a browser must not run."""
    vm_id = create(client, stopped=True)
    api = HostApi(vm_id, config, database)
    for event in ("boot.progress", "boot.error", "shutdown.progress", SCRIPT):
        api.answer("Notify", {"event": event, "payload": SCRIPT + "\x1b[31m'\"&"})
    with open(config.run_path / vm_id / "serial.log", "w") as log:
        log.write(f"{SCRIPT}</pre>\x1b]0;title\x07\n")
    with database.writing() as session:
        vm = session.get_one(Vm, vm_id)
        vm.image_version = SCRIPT
    return vm_id


def test_what_a_guest_says_is_shown_and_never_run(client: FlaskClient, told: str) -> None:
    for path in ("/", f"/?q={SCRIPT}", f"/console/vm/{told}", "/sign-in"):
        page = client.get(path)

        assert page.status_code == 200
        # The page's own scripts are files of its own; nothing runs that stands in it.
        assert re.findall(r"<script(?! [^>]*src=\"/static/)", page.text) == []
        policy = page.headers["Content-Security-Policy"]
        assert "default-src 'self'" in policy
        assert "frame-ancestors 'none'" in policy
        assert "unsafe" not in policy
        assert page.headers["X-Content-Type-Options"] == "nosniff"
        assert page.headers["Cache-Control"] == "no-store"
    assert "&lt;script&gt;" in client.get(f"/console/vm/{told}").text


def test_what_a_guest_says_is_data_in_json(client: FlaskClient, told: str) -> None:
    (vm,) = ask(client, "/prpc/Status")["vms"]

    assert vm["boot_error"] == SCRIPT + "\x1b[31m'\"&"
    assert [event["event"] for event in vm["events"]][-1] == SCRIPT


def test_a_log_is_not_taken_for_a_page(client: FlaskClient, told: str) -> None:
    answer = client.get(f"/logs?id={told}")

    assert answer.mimetype == "text/plain"
    assert answer.headers["X-Content-Type-Options"] == "nosniff"
