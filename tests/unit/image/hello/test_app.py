"""The sample app against an agent that answers, one that refuses, and none."""

from __future__ import annotations

import base64
import hashlib
import http.client
import http.server
import json
import socketserver
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import yaml

from image import container, hello
from image.hello import app

KEY = "11" * 32
CERTIFICATE = "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n"


def quote(issuer: bytes) -> str:
    """Bytes with a certificate in them, in hex."""
    pem = CERTIFICATE.format(base64.b64encode(b"0\x82 CN=" + issuer).decode())
    return (b"\x04\x00" + b"\xff" * 40 + pem.encode()).hex()


class Agent(http.server.BaseHTTPRequestHandler):
    """A guest agent that knows the three calls."""

    answers: ClassVar[dict[str, tuple[int, dict[str, Any]]]] = {}

    def do_POST(self) -> None:
        """Answers, and repeats the report data that was asked for."""
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        status, answer = self.answers[self.path]
        if "report_data" in answer:
            answer = {**answer, "report_data": asked["report_data"].ljust(128, "0")}
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""

    def address_string(self) -> str:
        """Unix sockets have none."""
        return ""


@pytest.fixture
def agent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[type[Agent]]:
    """An agent on a Unix socket that the app asks."""
    path = tmp_path / "dstack.sock"
    monkeypatch.setattr(app, "AGENT_SOCKET", str(path))
    monkeypatch.setattr(
        Agent,
        "answers",
        {
            "/Info": (
                200,
                {"app_id": "aa" * 20, "instance_id": "bb" * 20, "app_name": "<b>hello</b>"},
            ),
            "/GetKey": (200, {"key": KEY}),
            "/GetQuote": (
                200,
                {"quote": quote(b"Intel"), "event_log": "[]", "vm_config": "{}", "report_data": ""},
            ),
        },
    )
    with socketserver.ThreadingUnixStreamServer(str(path), Agent) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield Agent
        server.shutdown()
        thread.join()


@pytest.fixture
def site() -> Iterator[http.client.HTTPConnection]:
    """The app's own listener."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), app.Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        connection = http.client.HTTPConnection(*server.server_address[:2], timeout=10)  # type: ignore[arg-type]
        yield connection
        connection.close()
        server.shutdown()
        thread.join()


def test_the_json_answer_binds_the_nonce_and_hides_the_key(agent: type[Agent]) -> None:
    status, content_type, text = app.answer("/json?nonce=caf%C3%A9")

    said = json.loads(text)
    assert (status, content_type) == (200, "application/json")
    assert said["report_data"] == hashlib.sha256("café".encode()).hexdigest() + "00" * 32
    assert said["key_fingerprint"] == hashlib.sha256(bytes.fromhex(KEY)).hexdigest()[:16]
    assert said["app_id"] == "aa" * 20
    assert said["simulated"] is False
    assert KEY not in text


def test_the_page_escapes_what_it_shows(agent: type[Agent]) -> None:
    status, _, text = app.answer("/")

    assert status == 200
    assert "&lt;b&gt;hello&lt;/b&gt;" in text
    assert "<b>hello</b>" not in text
    assert "simulated" not in text


def test_a_simulated_quote_is_marked(agent: type[Agent]) -> None:
    made = quote(b"Casemate Simulated TEE")
    agent.answers["/GetQuote"] = (
        200,
        {"quote": made, "event_log": "[]", "vm_config": "{}", "report_data": ""},
    )

    assert json.loads(app.answer("/json")[2])["simulated"] is True
    assert "<b>simulated</b>" in app.answer("/")[2]


def test_an_agent_that_refuses_makes_a_bad_gateway(agent: type[Agent]) -> None:
    agent.answers["/GetKey"] = (400, {"error": "no"})

    status, _, text = app.answer("/json")

    assert status == 502
    assert "GetKey" in json.loads(text)["error"]


def test_an_agent_that_is_not_there_makes_a_bad_gateway(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(app, "AGENT_SOCKET", str(tmp_path / "none.sock"))

    assert app.answer("/json")[0] == 502


@pytest.mark.parametrize(
    "target",
    ["/../../etc/passwd", "/%2e%2e/etc/passwd", "//etc/passwd", "/json/../x", "/x", "*", ""],
)
def test_other_paths_are_not_found(target: str) -> None:
    assert app.answer(target)[0] == 404


@pytest.mark.parametrize("query", [f"nonce={'x' * 257}", "nonce=%ff", "&".join(["a=b"] * 9)])
def test_a_bad_nonce_is_refused(query: str) -> None:
    assert app.answer(f"/json?{query}")[0] == 400


def test_head_answers_like_get_without_a_body(
    agent: type[Agent], site: http.client.HTTPConnection
) -> None:
    site.request("GET", "/json?nonce=a")
    got = site.getresponse()
    body = got.read()
    site.request("HEAD", "/json?nonce=a")
    head = site.getresponse()

    assert (head.status, head.read()) == (200, b"")
    assert int(head.headers["Content-Length"]) == len(body)


def test_a_target_that_is_no_url_is_refused(site: http.client.HTTPConnection) -> None:
    site.putrequest("GET", "http://[", skip_host=True)
    site.endheaders()

    assert site.getresponse().status == 400


def test_the_compose_file_runs_the_bundled_image_without_a_registry() -> None:
    (service,) = yaml.safe_load(hello.compose_text())["services"].values()

    assert service["image"] == container.NAME
    assert service["pull_policy"] == "never"
    assert "/var/run/dstack.sock:/var/run/dstack.sock" in service["volumes"]
    assert "80:80" in service["ports"]
