"""The command line wired to an application in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flask.testing import FlaskClient

from cli.client import Client
from cli.main import casemate
from core import k256
from guest import env

ROOT = bytes(range(1, 33))
SIGNER = k256.public_key(ROOT).hex()


class Kms:
    """The key of one app, signed as a KMS signs it."""

    def __init__(self, app_id: str) -> None:
        self.key = X25519PrivateKey.generate()
        public = self.key.public_key().public_bytes_raw()
        head = b"dstack-env-encrypt-pubkey:" + bytes.fromhex(app_id)
        now = 1_790_000_000
        self.answer: dict[str, Any] = {
            "public_key": public.hex(),
            "signature": k256.sign_recoverable(ROOT, head + public).hex(),
            "timestamp": now,
            "signature_v1": k256.sign_recoverable(
                ROOT, head + now.to_bytes(8, "big") + public
            ).hex(),
        }

    def opened(self, sealed: str) -> dict[str, str]:
        """What the guest reads, with every name let in."""
        plain = env.decrypt(self.key.private_bytes_raw(), bytes.fromhex(sealed))
        names = [each["key"] for each in json.loads(plain)["env"]]
        return env.variables(plain, names)


@dataclass
class Wired(Client):
    """A client whose requests go to a Flask application; keeps what it asked."""

    app: FlaskClient | None = None
    asked: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    # Answers in the application's place, by path.
    instead: dict[str, Any] = field(default_factory=dict)

    def request(self, verb: str, path: str, **kwargs: Any) -> requests.Response:
        """One request, answered at once."""
        assert self.app is not None
        self.asked.append((path, kwargs.get("json") or {}))
        answer = requests.Response()
        answer._content_consumed = True  # type: ignore[attr-defined]
        if path in self.instead:
            answer.status_code, answer._content = 200, json.dumps(self.instead[path]).encode()
            return answer
        given = self.app.open(path, method=verb, json=kwargs.get("json"))
        answer.status_code, answer._content = given.status_code, given.data
        return answer

    def said(self, path: str) -> list[dict[str, Any]]:
        """The messages of the calls to a path."""
        return [message for asked, message in self.asked if asked == path]


@pytest.fixture
def wired(client: FlaskClient, monkeypatch: pytest.MonkeyPatch) -> Wired:
    """What the commands find as the running service."""
    made = Wired("tcp:127.0.0.1:1", "", app=client)
    monkeypatch.setattr(Client, "found", classmethod(lambda cls: made))
    return made


@pytest.fixture
def run(wired: Wired) -> Callable[..., Result]:
    """Runs a command line; refusals come as the exceptions that they are."""

    def invoke(*words: object, input: str = "") -> Result:
        done = CliRunner().invoke(casemate, [str(each) for each in words], input=input)
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        return done

    return invoke
