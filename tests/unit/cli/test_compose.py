from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click
import pytest

from cli import compose
from core.errors import Invalid

YAML = "services:\n  web:\n    image: nginx\n"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "docker-compose.yaml"
    path.write_text(YAML)
    return path


def options(**given: Any) -> dict[str, Any]:
    return {"compose": None, "app_compose": None, **dict.fromkeys(compose._FIELD_NAMES), **given}


def test_a_docker_compose_file_is_wrapped(file: Path) -> None:
    text = compose.text_of(options(compose=file), "web", None, {})

    assert json.loads(text or "") == {
        "manifest_version": 2,
        "name": "web",
        "runner": "docker-compose",
        "docker_compose_file": YAML,
        "kms_enabled": False,
        "local_key_provider_enabled": False,
        "key_provider": "none",
        "gateway_enabled": False,
        "public_logs": False,
        "public_sysinfo": False,
        "public_tcbinfo": True,
        "secure_time": False,
        "allowed_envs": [],
    }


def test_an_app_with_variables_gets_its_keys_from_the_kms(file: Path) -> None:
    text = compose.text_of(options(compose=file), "web", None, {"A": "1"})

    document = json.loads(text or "")
    assert (document["kms_enabled"], document["key_provider"]) == (True, "kms")
    assert document["allowed_envs"] == ["A"]


def test_an_update_keeps_what_the_document_says_besides(file: Path) -> None:
    before = json.dumps({"public_logs": True, "allowed_envs": ["A"], "docker_compose_file": "x"})

    text = compose.text_of(options(compose=file, public_sysinfo=False), "web", before, None)

    assert json.loads(text or "") == {
        "public_logs": True,
        "public_sysinfo": False,
        "allowed_envs": ["A"],
        "docker_compose_file": YAML,
    }


def test_nothing_asked_for_is_no_document() -> None:
    assert compose.text_of(options(), "web", "{}", None) is None
    assert compose.text_of(options(), "web", None, {}) is None


def test_a_document_is_sent_byte_by_byte(tmp_path: Path) -> None:
    path = tmp_path / "app-compose.json"
    path.write_bytes(b'{ "allowed_envs": ["A", "B"],\r\n "x": "\xc3\xbc" }\n')

    text = compose.text_of(options(app_compose=path), "web", None, {"A": "1"})

    assert (text or "").encode() == path.read_bytes()
    with pytest.raises(Invalid, match="allowed_envs: add C"):
        compose.text_of(options(app_compose=path), "web", None, {"C": "1"})
    with pytest.raises(click.UsageError):
        compose.text_of(options(app_compose=path, public_logs=True), "web", None, {})


@pytest.mark.parametrize("text", ["a: [", "services: 3\n", "[]", '{"docker_compose_file": "x"}'])
def test_what_is_no_docker_compose_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "file"
    path.write_text(text)

    with pytest.raises(Invalid, match="compose:") as refused:
        compose.text_of(options(compose=path), "web", None, {})
    assert ("--app-compose" in refused.value.message) == text.startswith("{")


def test_names_change_the_text_only_when_they_differ() -> None:
    text = '{"allowed_envs":["A","B"]}'

    assert compose.allowing(text, ["B", "A"]) == text
    assert json.loads(compose.allowing(text, ["A"])) == {"allowed_envs": ["A"]}
    with pytest.raises(Invalid, match="must be a JSON object"):
        compose.allowed("[]")
