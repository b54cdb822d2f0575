from __future__ import annotations

import http.server
import json
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.client import Client
from core.errors import CasemateError, Unavailable, Upstream
from tests.common.waiting import free_port


class Page(http.server.BaseHTTPRequestHandler):
    """Answers by the path asked for."""

    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        status, body = {
            "/html": (200, b"<html>"),
            "/refusal": (400, b'{"message": "name: must not be empty"}'),
            "/page": (502, b"<html>bad gateway</html>"),
            "/token": (200, json.dumps(self.headers["Authorization"]).encode()),
            "/nothing": (200, b""),
        }[self.path]
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        self.wfile.write(b"3\r\ncut\r\n")
        self.close_connection = True

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""


@pytest.fixture(scope="module")
def client() -> Iterator[Client]:
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Page)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield Client(f"tcp:127.0.0.1:{server.server_port}", "t0ken")
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_call_carries_the_token_and_gives_the_answer(client: Client) -> None:
    assert client.call("token") == "Bearer t0ken"
    assert client.call("nothing") is None


def test_a_refusal_is_told_in_the_services_words(client: Client) -> None:
    with pytest.raises(CasemateError, match=r"^name: must not be empty$"):
        client.call("refusal")
    with pytest.raises(CasemateError, match=r"^status 502: <html>bad gateway"):
        client.call("page")


def test_another_program_is_told_from_casemate(client: Client) -> None:
    with pytest.raises(Upstream, match="is not Casemate"):
        client.call("html")


def test_a_stream_that_is_cut_off_is_told(client: Client) -> None:
    pieces = client.follow("/logs")

    assert next(pieces) == "cut"
    with pytest.raises(Unavailable, match="closed the connection"):
        next(pieces)


def test_nobody_there_is_told(tmp_path: Path) -> None:
    for address in (f"tcp:127.0.0.1:{free_port()}", f"unix:{tmp_path}/none.sock"):
        with pytest.raises(Unavailable, match="nobody answers at"):
            Client(address, "").call("x")
    with pytest.raises(Unavailable):
        Client("http://", "").call("x")


def test_the_environment_names_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CASEMATE_ADDRESS", "127.0.0.1:7")
    monkeypatch.setenv("CASEMATE_DATA_DIR", str(tmp_path))
    monkeypatch.delenv("CASEMATE_ADMIN_TOKEN", raising=False)
    (tmp_path / "admin-token").write_text("of the file\n")

    assert Client.found() == Client("127.0.0.1:7", "of the file")
    assert Client.found().url == "http://127.0.0.1:7"
    monkeypatch.setenv("CASEMATE_ADMIN_TOKEN", "of the environment")
    assert Client.found().token == "of the environment"


def test_no_service_at_all_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(tmp_path))
    monkeypatch.delenv("CASEMATE_ADDRESS", raising=False)
    monkeypatch.setattr("vmm.discovery.SYSTEM", tmp_path)

    with pytest.raises(Unavailable, match="set CASEMATE_ADDRESS"):
        Client.found()
