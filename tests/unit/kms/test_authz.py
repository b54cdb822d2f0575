"""Authorisation by a service on the network, and in development: anything but a clear yes is a no."""

from __future__ import annotations

import http.server
import json
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from core.errors import Upstream
from kms import authz
from kms.authz import Dev, Webhook
from kms.chain import Contract
from kms.decision import Decision, Policy
from kms.policy import PolicyFile
from kms.settings import AuthSettings, EthereumSettings, WebhookSettings
from tests.common.waiting import free_port
from tests.unit.kms.test_policy import BOOT


class Service(http.server.ThreadingHTTPServer):
    """An authorisation service that answers as a test says, and keeps what it was asked."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.status, self.body = 200, b"{}"
        self.headers: dict[str, str] = {}
        self.drip_s = self.late_s = 0.0
        self.asked: list[tuple[str, str, Any, str]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def say(self, code: int = 200, **said: object) -> None:
        self.status, self.body = code, json.dumps(said).encode()


class Handler(http.server.BaseHTTPRequestHandler):
    server: Service

    def do_GET(self) -> None:
        size = int(self.headers.get("Content-Length") or 0)
        body = json.loads(self.rfile.read(size)) if size else None
        self.server.asked.append((self.command, self.path, body, self.headers["User-Agent"]))
        time.sleep(self.server.late_s)
        self.send_response(self.server.status)
        for name, value in self.server.headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(self.server.body)))
        self.end_headers()
        for at in range(0, len(self.server.body), 1 << 20):
            time.sleep(self.server.drip_s)
            self.wfile.write(self.server.body[at : at + (1 << 20)])

    do_POST = do_GET

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def service() -> Iterator[Service]:
    made = Service()
    threading.Thread(target=made.serve_forever, args=[0.01], daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


@pytest.fixture
def webhook(service: Service) -> Webhook:
    return Webhook(service.url + "/", "9.8.7")


def test_the_service_is_asked_about_apps_and_kmss_each_time(
    service: Service, webhook: Webhook
) -> None:
    service.say(isAllowed=True, gatewayAppId="gw", reason="")

    decisions = [webhook.app(BOOT), webhook.app(BOOT), webhook.kms(BOOT)]

    assert all(decision.is_allowed for decision in decisions)
    assert decisions[0].gateway_app_id == "gw"
    paths = [(method, path) for method, path, _, _ in service.asked]
    assert paths == [("POST", "/bootAuth/app")] * 2 + [("POST", "/bootAuth/kms")]
    assert service.asked[0][2] == BOOT.to_json()
    assert service.asked[0][3] == "dstack-kms/9.8.7"


def test_a_no_has_the_services_reason(service: Service, webhook: Webhook) -> None:
    service.say(isAllowed=False, reason="not today")
    assert webhook.app(BOOT) == Decision(False, "not today")

    service.say(isAllowed=False)
    assert webhook.app(BOOT).reason == "the authorisation service says no"


@pytest.mark.parametrize(
    ("status", "body"),
    [
        (500, b'{"isAllowed": true}'),
        (404, b'{"isAllowed": true}'),
        (302, b'{"isAllowed": true}'),
        (200, b""),
        (200, b"yes"),
        (200, b"[true]"),
        (200, b"[" * 100_000),
        (200, b'{"isAllowed": "true"}'),
        (200, b'{"isAllowed": 1}'),
        (200, b'{"isAllowed": true' + b" " * (1 << 20) + b"}"),
    ],
)
def test_whatever_is_no_clear_yes_is_a_no(
    service: Service, webhook: Webhook, status: int, body: bytes
) -> None:
    service.status, service.body = status, body
    service.headers["Location"] = "/"

    decision = webhook.app(BOOT)

    assert not decision.is_allowed and decision.reason


def test_a_service_that_is_not_there_or_slow_is_a_no(
    service: Service, webhook: Webhook, monkeypatch: pytest.MonkeyPatch
) -> None:
    nobody = Webhook(f"http://127.0.0.1:{free_port()}", "1")
    assert "cannot be reached" in nobody.app(BOOT).reason

    monkeypatch.setattr(authz, "CALL_S", 0.05)
    service.say(isAllowed=True)
    service.drip_s = 0.3
    assert not webhook.app(BOOT).is_allowed
    service.late_s = 0.3
    assert "did not answer within" in webhook.app(BOOT).reason


def test_the_services_description_is_passed_on(service: Service, webhook: Webhook) -> None:
    service.say(
        status="ok",
        kmsContractAddr="0xabc",
        gatewayAppId="gw",
        chainId=3,
        appAuthImplementation="",
        appImplementation="0xdef",
        ethRpcUrl="https://chain",
    )

    assert webhook.policy() == Policy("gw", "0xabc", 3, "0xdef", "https://chain")
    service.say(chainId="x")
    assert webhook.policy().chain_id == 0
    service.say(503)
    with pytest.raises(Upstream):
        webhook.policy()


def test_development_allows_everything_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    dev = authz.of(AuthSettings(type="dev"), "1")

    assert dev.is_dev and isinstance(dev, Dev)
    assert dev.app(BOOT).is_allowed and dev.kms(BOOT).is_allowed
    assert dev.app(BOOT).gateway_app_id == dev.policy().gateway_app_id == "any"
    assert "every app and every KMS is given its keys" in caplog.text


@pytest.mark.parametrize(
    ("auth", "kind"),
    [
        (AuthSettings(type="webhook", webhook=WebhookSettings("http://x")), Webhook),
        (AuthSettings(type="file"), PolicyFile),
        (
            AuthSettings(type="ethereum", ethereum=EthereumSettings("http://x", "0x" + "11" * 20)),
            Contract,
        ),
    ],
)
def test_the_configuration_names_the_way(auth: AuthSettings, kind: Callable[..., object]) -> None:
    assert isinstance(authz.of(auth, "1"), kind)  # type: ignore[arg-type] # a class
