"""The command line wired to an application in this process."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import requests
from click.testing import CliRunner, Result
from flask.testing import FlaskClient

from cli.client import Client
from cli.main import casemate


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
