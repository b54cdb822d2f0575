"""A caller of the VMM: posts JSON, gives back the answer and checks its form."""

from __future__ import annotations

from typing import Any

from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.common import rows


def post(client: FlaskClient, path: str, **fields: Any) -> TestResponse:
    """Posts a JSON object; a refusal must have the body that every refusal has."""
    answer = client.post(path, json=fields)
    if answer.status_code >= 400:
        assert answer.content_type == "application/json"
        assert answer.json is not None
        assert set(answer.json) == {"message", "error"}
        assert answer.json["message"] == answer.json["error"] != ""
    return answer


def ask(client: FlaskClient, path: str, **fields: Any) -> Any:
    """The answer of a call that succeeds; None when it is empty."""
    answer = post(client, path, **fields)
    assert answer.status_code == 200, answer.text
    return answer.json if answer.data else None


def refused(client: FlaskClient, path: str, status: int, **fields: Any) -> str:
    """The text of a call that is refused with a status."""
    answer = post(client, path, **fields)
    assert answer.status_code == status, answer.text
    assert answer.json is not None
    text: str = answer.json["message"]
    return text


def create(client: FlaskClient, **fields: Any) -> str:
    """Makes a VM and returns its id."""
    vm_id: str = ask(client, "/prpc/CreateVm", **rows.request(**fields))["id"]
    return vm_id


def info(client: FlaskClient, vm_id: str) -> dict[str, Any]:
    """A VM as GetInfo shows it."""
    found = ask(client, "/prpc/GetInfo", id=vm_id)
    assert found["found"] is True
    shown: dict[str, Any] = found["info"]
    return shown
