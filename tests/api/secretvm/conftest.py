"""What tests of the SecretVM interface stand on: a host with room, and tenants with keys."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from io import BytesIO
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from core.config import Config

COMPOSE = (
    b"services:\n  web:\n    image: localhost/casemate-hello:1\n    ports:\n      - '8080:80'\n"
)
ADMIN = "cm_admin-of-the-tests"


@dataclass(frozen=True)
class Tenant:
    """Somebody with a key."""

    client: FlaskClient
    key: str = field(repr=False)

    def call(self, method: str, path: str, **kwargs: Any) -> TestResponse:
        """Any call below /api."""
        headers = {"Authorization": f"Bearer {self.key}", **kwargs.pop("headers", {})}
        return self.client.open(f"/api{path}", method=method, headers=headers, **kwargs)

    def get(self, path: str, **kwargs: Any) -> TestResponse:
        """A GET below /api."""
        return self.call("GET", path, **kwargs)

    def post(self, path: str, **kwargs: Any) -> TestResponse:
        """A POST below /api."""
        return self.call("POST", path, **kwargs)

    def create(self, compose: bytes = COMPOSE, **fields: Any) -> TestResponse:
        """POST /api/vm/create; the VM is small and is not started unless the fields say so."""
        form = {"name": "my vm", "vmTypeId": "small", "skip_launch": "1", **fields}
        form = {name: value for name, value in form.items() if value is not None}
        form["dockercompose"] = (BytesIO(compose), "docker-compose.yml")
        return self.post("/vm/create", data=form)

    def made(self, compose: bytes = COMPOSE, **fields: Any) -> dict[str, Any]:
        """The object of a VM that could be made."""
        answer = self.create(compose, **fields)
        assert answer.status_code == 200, answer.text
        told: dict[str, Any] = answer.json
        return told


@pytest.fixture
def config(config: Config) -> Config:
    return replace(config, admin_token=ADMIN)


@pytest.fixture
def admin(app: Flask) -> Tenant:
    """The administrator."""
    return Tenant(app.test_client(), ADMIN)


@pytest.fixture
def alice(app: Flask, admin: Tenant) -> Tenant:
    """A user with a project."""
    return new_tenant(app, admin, "alice")


@pytest.fixture
def bob(app: Flask, admin: Tenant) -> Tenant:
    """Another one."""
    return new_tenant(app, admin, "bob")


def new_tenant(app: Flask, admin: Tenant, user: str, **fields: str) -> Tenant:
    """A user, made when new, with one more key."""
    answer = admin.post("/keys", json={"user": user, "name": "test", **fields})
    assert answer.status_code == 200, answer.text
    return Tenant(app.test_client(), answer.json["key"])
