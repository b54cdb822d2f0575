from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from core.errors import Unavailable
from tests.common.waiting import free_port, until
from vmm import companion, forward, process
from vmm.network import Port


class Guest:
    """What a guest at 127.0.0.x would be: answers each text with its own name before it."""

    def __init__(self, address: str, name: str, port: int = 0) -> None:
        self.name = name
        self.tcp = socket.create_server((address, port))
        self.port = self.tcp.getsockname()[1]
        self.udp = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        self.udp.bind((address, self.port))
        for serve in (self.serve_tcp, self.serve_udp):
            threading.Thread(target=serve, daemon=True).start()

    def serve_tcp(self) -> None:
        with ThreadPoolExecutor(64) as pool:
            while True:
                try:
                    client = self.tcp.accept()[0]
                except OSError:
                    return
                pool.submit(self.answer, client)

    def answer(self, client: socket.socket) -> None:
        with client, client.makefile("rb") as said:
            everything = said.read()  # to the end: a relay must tell it
            client.sendall(self.name.encode() + b":" + everything)

    def serve_udp(self) -> None:
        while True:
            try:
                data, client = self.udp.recvfrom(65536)
            except OSError:
                return
            self.udp.sendto(self.name.encode() + b":" + data, client)

    def close(self) -> None:
        self.tcp.shutdown(socket.SHUT_RDWR)
        self.tcp.close()
        self.udp.close()


@pytest.fixture
def workdir(data_dir: Path) -> Path:
    path = data_dir / "vm/id"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def guest() -> Iterator[Callable[..., Guest]]:
    with ExitStack() as ending:

        def make(address: str, name: str, port: int = 0) -> Guest:
            made = Guest(address, name, port)
            ending.callback(made.close)
            return made

        yield make


def both(host_port: int, vm_port: int) -> list[Port]:
    return [Port(protocol, "127.0.0.1", host_port, vm_port) for protocol in ("tcp", "udp")]


def say(port: int, text: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(text)
        connection.shutdown(socket.SHUT_WR)
        with connection.makefile("rb") as answer:
            return answer.read()


def say_udp(port: int, text: bytes) -> bytes:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.settimeout(10)
        client.sendto(text, ("127.0.0.1", port))
        return client.recv(65536)


def test_host_ports_lead_to_the_leased_address(workdir: Path, guest: Callable[..., Guest]) -> None:
    web, port = guest("127.0.0.2", "web"), free_port()

    companion.relay(workdir, both(port, web.port), "127.0.0.2")

    assert say(port, b"hello") == b"web:hello"
    assert say(port, b"x" * 3_000_000) == b"web:" + b"x" * 3_000_000
    assert say_udp(port, b"ping") == b"web:ping"
    assert say_udp(port, b"p" * 9000) == b"web:" + b"p" * 9000


def test_a_new_lease_replaces_the_target(workdir: Path, guest: Callable[..., Guest]) -> None:
    old, port = guest("127.0.0.2", "old"), free_port()
    guest("127.0.0.3", "new", old.port)
    ports = both(port, old.port)
    companion.relay(workdir, ports, "127.0.0.2")
    assert say(port, b"a") == b"old:a"

    companion.relay(workdir, ports, "127.0.0.3")

    assert say(port, b"a") == b"new:a"
    assert say_udp(port, b"b") == b"new:b"


def test_a_relay_that_leads_there_already_stays(workdir: Path, guest: Callable[..., Guest]) -> None:
    ports = both(free_port(), guest("127.0.0.2", "web").port)
    companion.relay(workdir, ports, "127.0.0.2")
    before = process.find(workdir / "forward")

    companion.relay(workdir, ports, "127.0.0.2")

    assert before is not None
    assert process.find(workdir / "forward") == before
    assert os.getsid(before.pid) != os.getsid(0)


def test_without_a_lease_or_after_the_end_nothing_is_bound(
    workdir: Path, guest: Callable[..., Guest]
) -> None:
    port = free_port()
    ports = both(port, guest("127.0.0.2", "web").port)
    companion.relay(workdir, ports, "")
    assert process.find(workdir / "forward") is None

    companion.relay(workdir, ports, "127.0.0.2")
    companion.end_all(workdir)

    assert process.find(workdir / "forward") is None
    with pytest.raises(ConnectionRefusedError):
        say(port, b"")


def test_a_busy_port_is_named(workdir: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(Unavailable, match=f"host port tcp 127.0.0.1:{port}"):
            companion.relay(workdir, both(port, 80), "127.0.0.2")

    assert process.find(workdir / "forward") is None


def test_a_guest_that_is_not_there_costs_the_client_its_connection_and_no_more(
    workdir: Path, guest: Callable[..., Guest]
) -> None:
    web, port = guest("127.0.0.2", "web"), free_port()
    dead = free_port()
    ports = [Port("tcp", "127.0.0.1", dead, 1), *both(port, web.port)]
    companion.relay(workdir, ports, "127.0.0.2")

    with socket.create_connection(("127.0.0.1", dead), 10) as connection:
        assert connection.recv(1) == b""

    assert say(port, b"still") == b"web:still"


def test_connections_are_capped_and_come_back(workdir: Path, guest: Callable[..., Guest]) -> None:
    web, port = guest("127.0.0.2", "web"), free_port()
    companion.relay(workdir, both(port, web.port), "127.0.0.2")
    with ExitStack() as held:
        for _ in range(forward.CONNECTIONS_MOST):
            held.enter_context(socket.create_connection(("127.0.0.1", port), 10))

        with socket.create_connection(("127.0.0.1", port), 10) as one_more:
            try:
                assert one_more.recv(1) == b""
            except ConnectionResetError:
                pass  # turned away in so many words
        assert say_udp(port, b"ping") == b"web:ping"

    def answers() -> bool:
        try:
            return say(port, b"again") == b"web:again"
        except OSError:
            return False

    assert until(answers)


def test_udp_flows_are_capped_at_the_cost_of_the_idlest(
    workdir: Path, guest: Callable[..., Guest]
) -> None:
    web, port = guest("127.0.0.2", "web"), free_port()
    companion.relay(workdir, both(port, web.port), "127.0.0.2")
    relay = process.find(workdir / "forward")
    assert relay is not None

    for number in range(forward.FLOWS_MOST + 50):
        assert say_udp(port, b"%d" % number) == b"web:%d" % number

    assert len(os.listdir(f"/proc/{relay.pid}/fd")) < forward.FLOWS_MOST + 30
