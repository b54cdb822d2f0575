"""The command line wired to an application in this process."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import requests
from click.testing import CliRunner, Result
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from flask import Flask
from flask.testing import FlaskClient

from cli.client import Client
from cli.main import casemate
from core import k256
from core.config import Config
from guest import env
from tests.api.runs.conftest import Host, background, sweeper  # noqa: F401 - fixtures
from tests.common.runs_site import Site
from tests.common.served import served

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


@pytest.fixture
def stranger_site(
    app: Flask,
    config: Config,
    background: Host,  # noqa: F811 - the fixture
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Site]:
    """A host of runs that the command line has not been told of."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("DSTACK_PROJECT", raising=False)
    monkeypatch.chdir(tmp_path)
    with served(app) as url:
        site = Site(
            url, (config.data_dir / "admin-token").read_text().strip(), tmp_path, background
        )
        yield site
        for each in site.started:
            each.kill()
            each.communicate()


@pytest.fixture
def site(stranger_site: Site) -> Site:
    """A host of runs whose project main is the default one."""
    site = stranger_site
    site.run("project", "add", "--name", "main", "--url", site.url, "--token", site.token, "-y")
    return site
