from __future__ import annotations

import hashlib
import json
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography import x509
from flask.testing import FlaskClient

from attest import eventlog, quote
from core.certs import spki_der
from guest import listeners, public, public_routes, simulator
from guest.public import Pages
from guest.service import Agent
from tests.unit.guest.test_containers import StandIn

TOKEN = "a dev token"
SPKI = b"the key of the listener"
CLOSED = {"logs": "/logs", "compose": "/docker-compose", "services": "/services",
          "upgrades": "/vm_upgrades", "resources": "/resources"}  # fmt: skip

Make = Callable[..., FlaskClient]


@pytest.fixture
def make(folder: Path) -> Make:
    """A client of the pages of an agent whose app-compose has this `secretvm` table."""

    def client(**table: object) -> FlaskClient:
        folder.mkdir(exist_ok=True)
        document = {
            "name": "a",
            "docker_compose_file": "services: {}\n# ünï\n",
            "public_tcbinfo": True,
            "secretvm": table,
        }
        (folder / "app-compose.json").write_text(json.dumps(document))
        held = simulator.prepared(folder, None, f"unix://{folder}/engine.sock")
        ready = held.__enter__()
        pages = Pages(Agent(ready.settings, lambda: None), SPKI)
        return public_routes.create_app(pages).test_client()

    return client


def test_the_quote_binds_the_listeners_key(make: Make) -> None:
    answer = make().get("/cpu")

    assert answer.content_type == "text/plain; charset=utf-8"
    report = quote.parse(bytes.fromhex(answer.text)).report
    assert report.report_data == hashlib.sha256(SPKI).digest() + bytes(32)


def test_pages_come_in_every_form(make: Make) -> None:
    client = make(environment="dev")

    said = client.get("/status").json
    assert (said["status"], said["env"]) == ("ok", "dev")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ", said["time"])
    assert client.get("/.well-known/status").json["env"] == "dev"
    for path in ("/status.html", "/.well-known/status.html"):
        page = client.get(path)
        assert page.content_type.startswith("text/html")
        assert "&#34;dev&#34;" in page.text
    assert client.get("/docker-compose").data == "services: {}\n# ünï\n".encode()
    assert client.get("/vm_upgrades").json == {"upgradeable": False, "upgrades": []}
    for algorithm, size in (("ed25519", 64), ("secp256k1", 66)):
        assert len(client.get(f"/publickey_{algorithm}").text) == size


def test_what_is_not_there_says_why(make: Make) -> None:
    client = make()

    for path in ("/gpu", "/ita-jwt", "/poc-jwt"):
        answer = client.get(path)
        assert (answer.status_code, sorted(answer.json)) == (404, ["details", "error"])
    for path in ("/nothing", "/.well-known/nothing.html", "/a/b"):
        assert client.get(path).status_code == 404
    assert client.get("/logs?lines=-1").status_code == 400


def test_log_and_document_replay_to_the_quote(make: Make) -> None:
    client = make()

    info = client.get("/info").json
    events = eventlog.from_json(info["event_log"])
    report = quote.parse(bytes.fromhex(client.get("/cpu").text)).report
    assert eventlog.replay(events, 3) == report.rtmrs[3]
    measured = eventlog.platform_payload(events, "compose-hash")
    assert measured == hashlib.sha256(info["app_compose"].encode()).digest()
    assert len(info["dstack_app_id"]) == 40


def test_private_mode_closes_the_five_pages_and_no_other(make: Make, folder: Path) -> None:
    hashed = hashlib.sha256(TOKEN.encode()).hexdigest()
    client = make(private=True, dev_token_sha256=hashed)

    for path in CLOSED.values():
        assert client.get(path).status_code == client.get(f"{path}.html").status_code == 403
        assert client.get(f"{path}?token=wrong").status_code == 403
    for path in ("/cpu", "/status", "/self", "/info"):
        assert client.get(path).status_code == 200
    # The document holds the compose file.
    assert list(client.get("/info").json) == ["dstack_app_id"]
    assert "app_compose" in client.get(f"/info?token={TOKEN}").json


def test_the_dev_token_opens_in_each_of_its_places(make: Make) -> None:
    hashed = hashlib.sha256(TOKEN.encode()).hexdigest()
    client = make(private=True, dev_token_sha256=hashed)

    ways = (
        {"headers": {"Authorization": f"Bearer {TOKEN}"}},
        {"headers": {"X-Dev-Token": TOKEN}},
        {"query_string": {"token": TOKEN}},
    )
    for way in ways:
        assert client.get("/docker-compose", **way).status_code == 200
    for headers in ({"Authorization": f"Basic {TOKEN}"}, {"X-Dev-Token": TOKEN + "x"}):
        assert client.get("/docker-compose", headers=headers).status_code == 403


def test_without_a_dev_token_nothing_opens(make: Make) -> None:
    client = make(private=True)

    for token in ("", "x", hashlib.sha256(b"").hexdigest()):
        assert client.get(f"/docker-compose?token={token}").status_code == 403


@pytest.mark.parametrize("number", range(5))
def test_each_place_of_the_mask_closes_its_page(make: Make, folder: Path, number: int) -> None:
    engine = StandIn(folder / "engine.sock") if folder.mkdir() is None else None
    assert engine is not None
    mask = "".join("1" if place == number else "0" for place in range(5))
    client = make(private=mask)

    met = {name: client.get(path).status_code for name, path in CLOSED.items()}
    engine.sock.close()
    closed = list(CLOSED)[number]
    assert met[closed] == 403
    assert all(status != 403 for name, status in met.items() if name != closed)


def test_only_get_is_answered_and_browsers_may_read(make: Make) -> None:
    client = make()

    for method in ("POST", "PUT", "DELETE", "OPTIONS", "HEAD"):
        answer = client.open("/cpu", method=method)
        assert answer.status_code == 405
        assert answer.headers["Access-Control-Allow-Origin"] == "*"
    for path in ("/cpu", "/gpu", "/nothing"):
        assert client.get(path).headers["Access-Control-Allow-Origin"] == "*"


def test_figures_are_of_this_machine(make: Make) -> None:
    client = make()

    first, second = (client.get("/resources").json for _ in range(2))
    for figures in (first, second):
        assert 0 < figures["memory_used_gb"] <= figures["memory_total_gb"]
        assert 0 <= figures["cpu_percent"] <= 100
        assert 0 <= figures["disk_percent"] <= 100


def test_the_listeners_key_is_made_once_and_closed_to_others(agent: Agent) -> None:
    first, second = (public.tls(agent.settings) for _ in range(2))

    assert first == second
    certificate = x509.load_pem_x509_certificate(first.certificate.read_bytes())
    assert spki_der(certificate.public_key()) == first.spki  # type: ignore[arg-type]
    assert first.key.stat().st_mode & 0o777 == 0o600


def test_a_peer_that_stops_in_the_handshake_gives_its_thread_back(
    agent: Agent, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(listeners, "STALLED_PEER_S", 0.2)
    own = public.tls(agent.settings)

    def default() -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(own.certificate, own.key)
        return context

    context = listeners._patient(None, default)
    ours, theirs = socket.socketpair()
    ours.setblocking(True)
    failures: list[Exception] = []

    def serve() -> None:
        connection = context.wrap_socket(ours, server_side=True, do_handshake_on_connect=False)
        try:
            connection.recv(1)
        except OSError as error:
            failures.append(error)

    thread = threading.Thread(target=serve, daemon=True)
    began = time.monotonic()
    thread.start()
    thread.join(8)
    theirs.close()
    assert [type(error) for error in failures] == [TimeoutError]
    assert time.monotonic() - began < 8
