"""The app-compose documents that deployments make."""

from __future__ import annotations

import json
from typing import Any

import pytest

from apps import documents
from apps.documents import COMPOSE_LIMIT
from apps.schemas import ComposeFile, Deployment
from core.errors import Invalid

COMPOSE = "services:\n  web:\n    image: nginx\n    ports: ['8080:80']\n"


def made(app: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
    file = ComposeFile(docker_compose_file=COMPOSE, **(app or {}))
    return documents.of_deployment(Deployment(name="web", compose_file=file, **more))


def test_a_document_says_what_was_asked_for_and_nothing_else() -> None:
    assert made({"pre_launch_script": "", "public_logs": False}) == {
        "manifest_version": 2,
        "runner": "docker-compose",
        "name": "web",
        "docker_compose_file": COMPOSE,
        "public_logs": False,
    }


@pytest.mark.parametrize(
    ("app", "more"),
    [({}, {"kms": "phala"}), ({}, {"env_keys": ["A"]}), ({"allowed_envs": ["A"]}, {})],
)
def test_who_has_something_to_unseal_wants_keys(app: Any, more: Any) -> None:
    assert made(app, **more)["kms_enabled"] is True
    assert made({**app, "kms_enabled": False}, **more)["kms_enabled"] is False


def test_the_older_name_of_the_gateway_is_read() -> None:
    assert made({"tproxy_enabled": True})["gateway_enabled"] is True


def test_texts_have_a_limit_together() -> None:
    half = "#" * (COMPOSE_LIMIT // 2)

    documents.check_compose(COMPOSE + half[len(COMPOSE) :], half)
    with pytest.raises(Invalid, match="at most"):
        documents.check_compose(COMPOSE + half, half)


@pytest.mark.parametrize("text", ["a: [b", "services: 5", "[]"])
def test_what_is_no_compose_file_is_refused(text: str) -> None:
    with pytest.raises(Invalid, match="docker_compose_file: "):
        documents.check_compose(text, None)


def test_the_published_ports_are_those_of_the_docker_compose_text() -> None:
    assert documents.published(json.dumps({"docker_compose_file": COMPOSE})) == (8080,)
    assert documents.published("{}") == documents.published("no JSON") == ()
