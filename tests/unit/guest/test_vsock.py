"""The guest's end of vsock, on stand-ins for its sockets; the host's end is the service's own."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core.errors import CasemateError, Invalid, Upstream, UpstreamTimeout
from guest import channel, vsock
from guest.channel import Notifier
from guest.settings import GUEST
from tests.common.waiting import until
from vmm import vsock as host_side


class Listening:
    """What a vsock listener gives: connections with the number of who made them."""

    def __init__(self, path: Path, cid: int) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.bind(str(path))
        self.socket.listen()
        self.cid = cid

    def accept(self) -> tuple[socket.socket, tuple[int, int]]:
        return self.socket.accept()[0], (self.cid, 1024)


def connected(path: Path) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.connect(str(path))
    return made


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[Path]:
    """A guest API on a Unix socket, which answers with what it was asked."""
    path = tmp_path / "guest.sock"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                connection = listening.accept()[0]
                with connection:
                    host_side.serve(connection, lambda method, params: {"said": [method, params]})

    threading.Thread(target=serve, daemon=True).start()
    yield path
    listening.shutdown(socket.SHUT_RDWR)
    listening.close()


def relayed(agent: Path, cid: int) -> Path:
    """The address of a relay to the agent, whose callers have this number."""
    path = agent.with_name(f"relay-{cid}.sock")
    listening: Any = Listening(path, cid)
    threading.Thread(target=vsock.relay, args=(listening, agent), daemon=True).start()
    return path


def test_the_hosts_calls_reach_the_agent(agent: Path) -> None:
    path = relayed(agent, vsock.HOST_CID)
    soon = time.monotonic() + 30

    for number in range(3):
        with connected(path) as connection:
            answer = host_side.ask(
                connection, "SysInfo", {"n": number}, first_by=soon, all_by=soon, limit=10_000
            )
        assert answer == {"said": ["SysInfo", {"n": number}]}


@pytest.mark.parametrize("cid", [1, 3, 77])
def test_nobody_but_the_host_reaches_the_agent(agent: Path, cid: int) -> None:
    with connected(relayed(agent, cid)) as connection:
        connection.settimeout(5)

        assert connection.recv(1) == b""


def test_an_agent_that_is_not_there_ends_the_call(tmp_path: Path) -> None:
    with connected(relayed(tmp_path / "nobody", vsock.HOST_CID)) as connection:
        connection.settimeout(5)

        assert connection.recv(1) == b""


class Service:
    """The host API of the service, at the other end of each connection."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[str, object]] = []
        self.ports: list[int] = []
        monkeypatch.setattr(vsock, "connect", self.connect)

    def connect(self, port: int, timeout_s: float) -> socket.socket:
        self.ports.append(port)
        ours, theirs = socket.socketpair()
        ours.settimeout(timeout_s)
        threading.Thread(target=self._serve, args=(theirs,), daemon=True).start()
        return ours

    def _serve(self, connection: socket.socket) -> None:
        with connection:
            host_side.serve(connection, self._answer)

    def _answer(self, method: str, params: object) -> object:
        self.asked.append((method, params))
        if method == "Refuse":
            raise Invalid("event: must not be empty")
        return {"name": "casemate"}


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Service:
    return Service(monkeypatch)


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("vsock://2:10003/api", 10003),
        ("vsock://2/api", 10000),
        ("http://10.0.2.2:80", 10000),
        ("vsock://2:x/api", 10000),
        (1, 10000),
        (None, 10000),
    ],
)
def test_the_host_is_asked_where_it_says_that_it_listens(
    tmp_path: Path, service: Service, url: object, port: int
) -> None:
    path = tmp_path / ".sys-config.json"
    if url is not None:
        path.write_text(json.dumps({"host_api_url": url}))

    assert vsock.Host(path).call("Info", {"a": 1}, 5) == {"name": "casemate"}

    assert (service.asked, service.ports) == ([("Info", {"a": 1})], [port])


def test_a_refusal_is_told_in_the_hosts_words(tmp_path: Path, service: Service) -> None:
    with pytest.raises(Upstream, match="refused Refuse: event: must not be empty"):
        vsock.Host(tmp_path / "none").call("Refuse", {}, 5)


@pytest.mark.parametrize(
    ("said", "error"),
    [
        (b"", Upstream),
        (b"nonsense\r\n\r\n", Upstream),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n{", Upstream),
        (b"HTTP/1.1 302 Found\r\nLocation: http://evil/\r\nContent-Length: 0\r\n\r\n", Upstream),
        (b"HTTP/1.1 500 X\r\nContent-Length: 3\r\n\r\nbad", Upstream),
        (None, UpstreamTimeout),
    ],
)
def test_a_host_that_answers_badly_or_not_is_an_upstream_failure(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    said: bytes | None,
    error: type[CasemateError],
) -> None:
    ours, theirs = socket.socketpair()
    deadline_s = 0.2 if said is None else 60
    ours.settimeout(deadline_s)
    monkeypatch.setattr(vsock, "connect", lambda port, timeout_s: ours)
    if said is not None:
        theirs.sendall(said)
        theirs.shutdown(socket.SHUT_WR)

    with pytest.raises(error):
        vsock.Host(tmp_path / "none").call("Info", {}, deadline_s)
    theirs.close()


def test_a_vm_with_a_vsock_device_and_no_serial_port_speaks_it(
    tmp_path: Path, service: Service
) -> None:
    settings = dataclasses.replace(GUEST, root=tmp_path, state=tmp_path, sys_config=tmp_path / "c")
    device = tmp_path / "sys/bus/virtio/devices/virtio3"
    device.mkdir(parents=True)
    (device / "device").write_text("0x0002\n")
    assert channel.host(settings) is None

    (device / "device").write_text("0x0013\n")
    notifier = Notifier(channel.host(settings))
    notifier.notify("boot.progress", "done")
    notifier.close()

    until(lambda: service.asked)
    assert service.asked == [("Notify", {"event": "boot.progress", "payload": "done"})]
