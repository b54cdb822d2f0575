from __future__ import annotations

import json

import pytest

from attest.compose import AppCompose
from vmm.console_compose import FLAGS, TEXTS, Form, shown, wanted

DOCKER = "services:\n  web:\n    image: nginx\n"


def form(**fields: str) -> Form:
    """A filled form as a browser sends it."""
    return Form({"compose_mode": "docker", "docker_compose_file": DOCKER, **fields})


def of(text: str, **fields: str) -> Form:
    """The update form of a document, with what was typed over it."""
    has = shown(text)
    on = {name: "on" for name in FLAGS if has[name]}
    texts = {name: has[name] for name in (*TEXTS, "key_provider")}
    return Form({"compose_mode": "docker", **on, **texts} | fields)


def test_a_docker_compose_text_becomes_a_document_that_guests_read() -> None:
    text = wanted(form(name=" web ", public_logs="on", key_provider="kms", allowed_envs="A B"))

    read = AppCompose.parse(text.encode())
    assert (read.name, read.docker_compose_file) == ("web", DOCKER)
    assert (read.public_logs, read.public_tcbinfo) == (True, False)
    assert (read.key_provider, read.allowed_envs) == ("kms", ("A", "B"))
    assert json.loads(text)["kms_enabled"] is True


def test_the_same_input_makes_the_same_bytes_whatever_the_line_ends() -> None:
    typed = form(name="web")
    sent = form(name="web", docker_compose_file=DOCKER.replace("\n", "\r\n"))

    assert wanted(typed) == wanted(sent)


def test_a_document_that_nobody_changed_stays_byte_for_byte() -> None:
    for before in (
        '{"docker_compose_file":"a"}',
        '{ "docker_compose_file" : "a\\r\\nb", "init_script": ["x", "y"], "features": ["tproxy-net"] }',
        '{"docker_compose_file": "a", "public_tcbinfo": false, "swap_size": 1024, "other": [1]}',
        '{"docker_compose_file": "a", "local_key_provider_enabled": true}',
    ):
        assert wanted(of(before), before) == before
        raw = Form({"compose_mode": "raw", "compose_file": before})
        assert wanted(raw, before) == before


def test_a_change_keeps_all_else() -> None:
    before = '{"docker_compose_file": "a", "init_script": ["x", "y"], "other": {"deep": [1]}}'

    after = json.loads(wanted(of(before, key_provider="local", swap_size="2G"), before))

    assert after == {
        **json.loads(before),
        "key_provider": "local",
        "kms_enabled": False,
        "local_key_provider_enabled": True,
        "swap_size": "2G",
    }


def test_an_emptied_field_goes() -> None:
    before = '{"docker_compose_file": "a", "swap_size": "1G"}'

    assert json.loads(wanted(of(before, swap_size=""), before)) == {"docker_compose_file": "a"}


def test_the_names_of_variables_change_only_when_they_are_told() -> None:
    before = '{"docker_compose_file": "a", "allowed_envs": ["A"]}'

    assert wanted(of(before), before) == before
    assert json.loads(wanted(of(before, allowed_envs="B"), before))["allowed_envs"] == ["B"]
    assert json.loads(wanted(of(before, allowed_envs=""), before))["allowed_envs"] == []


def test_a_raw_document_is_sent_as_it_was_typed() -> None:
    raw = Form({"compose_mode": "raw", "compose_file": '{"a":\r\n 1}', "public_logs": "on"})

    assert wanted(raw) == '{"a":\n 1}'


@pytest.mark.parametrize("text", ["", "nothing", "[1]", '"a"', "{" * 9999, '{"swap_size": true}'])
def test_what_is_no_document_shows_as_a_new_one(text: str) -> None:
    assert shown(text) == shown("{}")
    assert shown(text)["key_provider"] == "none"
