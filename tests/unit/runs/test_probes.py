"""How a replica is asked whether it is ready, with a real HTTP server and real sockets."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from runs import planner, probes
from runs.specs import RunSpec
from tests.common.waiting import free_port
from vmm.network import Port


@dataclass
class Service:
    """A service that answers with a status."""

    port: int = 0
    status: int = 200
    asked: list[tuple[str, str, dict[str, str], bytes]] = field(default_factory=list)


@pytest.fixture
def service() -> Iterator[Service]:
    told = Service()

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            told.asked.append((self.command, self.path, dict(self.headers.items()), body))
            self.send_response(told.status)
            self.send_header("Location", "/elsewhere")
            self.end_headers()

        do_GET = do_POST = do_HEAD = answer

        def log_message(self, *args: Any) -> None:
            """Says nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        told.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield told
        server.shutdown()
        thread.join()


def at(port: int) -> Port:
    return Port("tcp", "127.0.0.1", port, 8000)


def probe(**more: Any) -> Any:
    """A probe as a job has it."""
    configuration = {"type": "service", "port": 80, "commands": ["x"], "probes": [{"type": "http"}]}
    configuration["probes"] = [{"type": "http", **more}]
    (job,) = planner.job_specs(RunSpec().load({"configuration": configuration}), 0)
    (found,) = job["probes"]
    return found


@pytest.mark.parametrize(
    ("status", "passes"), [(200, True), (204, True), (302, False), (404, False), (503, False)]
)
def test_a_probe_passes_with_a_status_of_2xx_and_follows_nothing(
    service: Service, status: int, passes: bool
) -> None:
    service.status = status

    assert probes.succeeds(probe(url="/health?a=1"), at(service.port)) is passes
    assert [path for _, path, _, _ in service.asked] == ["/health?a=1"]


def test_a_probe_is_sent_as_it_is_configured(service: Service) -> None:
    headers = [{"name": "X-Token", "value": "t"}, {"name": "Host", "value": "web.example"}]

    assert probes.succeeds(probe(method="post", body="hi ü", headers=headers), at(service.port))

    ((method, path, sent, body),) = service.asked
    assert (method, path, body.decode()) == ("POST", "/", "hi ü")
    assert (sent["X-Token"], sent["Host"]) == ("t", "web.example")


def test_a_header_that_would_be_two_fails_the_probe(service: Service) -> None:
    headers = [{"name": "X", "value": "a\r\nY: b"}]

    assert not probes.succeeds(probe(headers=headers), at(service.port))
    assert service.asked == []


def test_a_port_that_answers_is_ready_whatever_it_says(service: Service) -> None:
    service.status = 500

    assert probes.answers(at(service.port))


def test_a_port_that_nobody_has_is_not_ready() -> None:
    assert not probes.answers(at(free_port()))
    assert not probes.succeeds(probe(), at(free_port()))


def test_a_line_that_is_taken_and_hung_up_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            listening.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert not probes.answers(at(listening.getsockname()[1]))
        thread.join()


def test_a_service_that_is_slow_to_answer_listens_and_fails_its_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "LISTENS_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]

        assert probes.answers(at(port))
        assert not probes.succeeds({**probe(), "timeout": 0.2}, at(port))
