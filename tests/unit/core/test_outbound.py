"""The way out for strangers: quality.md section 5.3 (SSRF)."""

from __future__ import annotations

import socket
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from core import outbound
from core.errors import Invalid, Unavailable, Upstream
from core.outbound import Outbound, Reach, Target
from tests.common.tls_server import TlsServer

# Everything that leads, or has led somebody, to a host that is not a stranger's to ask.
ADDRESSES = [
    "127.0.0.1",
    "127.0.0.2",
    "127.255.255.254",
    "127.1.1.1",
    "0.0.0.0",
    "0.0.0.1",
    "10.0.0.1",
    "10.255.255.255",
    "172.16.0.1",
    "172.31.255.255",
    "192.168.0.1",
    "192.168.255.254",
    "169.254.169.254",
    "169.254.0.1",
    "100.64.0.1",
    "100.127.255.255",
    "192.0.0.1",
    "192.0.0.8",
    "192.0.2.1",
    "198.18.0.1",
    "198.51.100.1",
    "203.0.113.1",
    "192.88.99.1",
    "224.0.0.1",
    "239.255.255.255",
    "240.0.0.1",
    "255.255.255.255",
    "::1",
    "::",
    "[::1]",
    "::ffff:127.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:169.254.169.254",
    "::127.0.0.1",
    "::ffff:0:127.0.0.1",
    "::7f00:1",
    "64:ff9b::127.0.0.1",
    "64:ff9b::a00:1",
    "64:ff9b:1::1",
    "2002:7f00:1::",
    "2002:a00:1::",
    "2001:0:7f00:1::",
    "2001:db8::1",
    "2001:10::1",
    "fc00::1",
    "fd00::1",
    "fe80::1",
    "fec0::1",
    "ff02::1",
    "ff0e::1",
    "100::1",
    "3fff::1",
    "5f00::1",
    "0:0:0:0:0:0:0:1",
    "[::ffff:7f00:1]",
]
# Forms that some resolver reads as an address, or some parser as another host.
FORMS = [
    "0x7f.1",
    "0x7f000001",
    "0X7F.0.0.1",
    "2130706433",
    "017700000001",
    "0177.0.0.1",
    "127.1",
    "127.0.1",
    "127.000.000.001",
    "127.0.0.1.",
    "0",
    "1",
    "0x0",
    "127.0.0.1:80",
    "localhost:80",
    "http://localhost",
    "https://127.0.0.1/",
    "file:///etc/passwd",
    "//127.0.0.1",
    "user@127.0.0.1",
    "a@b",
    "127.0.0.1#a",
    "127.0.0.1?a",
    "127.0.0.1/a",
    "127.0.0.1\\a",
    "fe80::1%lo",
    "::1%1",
    "[::1",
    "::1]",
    "[]",
    "[127.0.0.1]:80",
    "-a.test",
    "a-.test",
    "a..test",
    ".test",
    "%31%32%37.0.0.1",
    "127。0。0。1",
    "１２７.0.0.1",
    "ⓛocalhost",
    "①②⑦.0.0.1",
    "lоcalhost",
    "a_b.te$t",
]
HOSTILE = [*FORMS, "", " ", "a b", "a\r\nb", "a\0b", "\n127.0.0.1", "x" * 254, "x" * 64 + ".test"]


def answering(*addresses: str) -> Any:
    """A resolver that answers with the next of some addresses each time, and counts."""
    left = list(addresses)

    def resolve(host: str, port: int, **_: Any) -> list[tuple[Any, ...]]:
        address = left.pop(0)
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        tail = (address, port, 0, 0) if ":" in address else (address, port)
        return [(family, socket.SOCK_STREAM, 6, "", tail)]

    return resolve


@pytest.fixture
def server(tmp_path: Path) -> Iterator[TlsServer]:
    pages = {"/": b"hello", "/away": (302, b""), "/big": b"x" * (outbound.BODY_LIMIT + 1)}
    with TlsServer(tmp_path, pages) as running:
        yield running


def ask(way: Outbound, host: str, port: int, path: str = "/") -> Any:
    with way.call() as deadline, way.connected(Target.of(host, port), deadline) as link:
        return link.get(path)


def test_there_are_more_than_sixty_forms() -> None:
    assert len({*ADDRESSES, *HOSTILE}) > 90


@pytest.mark.parametrize("host", ADDRESSES)
def test_an_address_that_is_not_public_is_not_connected_to(host: str, server: TlsServer) -> None:
    with pytest.raises(Invalid, match="is not a public address"):
        ask(Outbound(Reach.PUBLIC), host, server.port)
    assert server.connections == 0


@pytest.mark.parametrize("address", [each.strip("[]") for each in ADDRESSES])
def test_a_name_of_such_an_address_is_not_connected_to(address: str, server: TlsServer) -> None:
    way = Outbound(Reach.PUBLIC, answering(address))

    with pytest.raises(Invalid, match=r"vm\.test is not a public address"):
        ask(way, "vm.test", server.port)
    assert server.connections == 0


@pytest.mark.parametrize("host", HOSTILE)
def test_what_is_no_host_is_refused_before_anybody_is_asked(host: str) -> None:
    # Whoever may connect anywhere may still not write the same thing in other ways.
    with pytest.raises(Invalid, match="domain: "):
        Target.of(host, 443)


def test_localhost_by_name_is_not_public(server: TlsServer) -> None:
    for name in ("localhost", "LOCALHOST"):
        with pytest.raises(Invalid, match="not a public address"):
            ask(Outbound(Reach.PUBLIC), name, server.port)
    assert server.connections == 0


@pytest.mark.parametrize("port", [0, 1, 22, 25, 80, 442, 444, 1024, 65536, -1])
def test_a_port_of_another_service_is_refused(port: int) -> None:
    with pytest.raises(Invalid, match="port: "):
        Target.of("vm.test", port)


def test_a_name_that_answers_differently_the_second_time_gains_nothing(
    server: TlsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The first answer is public (and swallows what is sent to it); the next would be this server.
    tried: list[str] = []

    class Recorded(socket.socket):
        def connect(self, address: Any) -> None:
            tried.append(address[0])
            raise TimeoutError

    monkeypatch.setattr(outbound.socket, "socket", Recorded)
    way = Outbound(Reach.PUBLIC, answering("8.8.8.8", "127.0.0.1", "127.0.0.1"))

    with pytest.raises(Upstream):
        ask(way, "vm.test", server.port)
    assert tried == ["8.8.8.8"]
    assert server.connections == 0


def test_a_name_with_one_private_address_among_public_ones_is_refused() -> None:
    both = [*answering("8.8.8.8")("a", 443), *answering("10.0.0.1")("a", 443)]

    with pytest.raises(Invalid, match="not a public address"):
        ask(Outbound(Reach.PUBLIC, lambda *_, **__: both), "vm.test", 443)


def test_public_addresses_are_public() -> None:
    for address in ("8.8.8.8", "1.1.1.1", "2606:4700::1111", "::ffff:8.8.8.8", "2a00:1450::1"):
        assert outbound.is_public(address), address
    assert not outbound.is_public("no address")


def test_a_host_that_may_be_asked_answers_on_a_connection_whose_certificate_is_known(
    server: TlsServer,
) -> None:
    way = Outbound(Reach.ANY)

    with way.call() as deadline:
        target = Target.of("127.0.0.1", server.port)
        with way.connected(target, deadline) as link:
            assert link.certificate == server.der
            assert "self" in link.distrust
            before = server.connections
            assert [link.get("/").body, link.get("/away").status] == [b"hello", 302]
            # The handshake that found the certificate wanting, and this one; no other.
            assert (before, server.connections) == (2, 2)
    assert "/elsewhere" not in server.asked


def test_a_chain_that_is_trusted_costs_one_connection(
    server: TlsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ca.pem").write_text(server.pem)
    made = ssl.create_default_context

    def trusting() -> ssl.SSLContext:
        context = made(cafile=str(tmp_path / "ca.pem"))
        context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
        return context

    monkeypatch.setattr(outbound.ssl, "create_default_context", trusting)
    way = Outbound(Reach.ANY, answering("127.0.0.1"))

    with way.call() as deadline, way.connected(Target.of("vm.test", server.port), deadline) as link:
        assert link.distrust == ""
    assert server.connections == 1


def test_a_body_that_is_too_large_ends_the_connection(server: TlsServer) -> None:
    way = Outbound(Reach.ANY)

    with way.call() as deadline:
        target = Target.of("127.0.0.1", server.port)
        with way.connected(target, deadline) as link:
            with pytest.raises(Upstream, match="more than"):
                link.get("/big")
            with pytest.raises(Upstream):
                link.get("/")
    assert server.asked == ["/big"]


def test_a_host_that_is_not_there_or_speaks_no_tls_is_unreachable(
    server: TlsServer,
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as plain:
        port = plain.getsockname()[1]
        taker = threading.Thread(target=lambda: plain.accept()[0].sendall(b"HTTP/1.1 200\r\n\r\n"))
        taker.start()
        with pytest.raises(Upstream):
            ask(Outbound(Reach.ANY), "127.0.0.1", port)
        taker.join()
    with pytest.raises(Upstream, match="cannot be reached"):
        ask(Outbound(Reach.ANY), "127.0.0.1", port)


def test_a_peer_that_drips_or_says_nothing_is_cut_off_in_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbound, "CONNECT_S", 0.3)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        with pytest.raises(Upstream, match="did not answer in time"):
            ask(Outbound(Reach.ANY), "127.0.0.1", silent.getsockname()[1])
    assert time.monotonic() - began < 4.5


def test_a_name_server_that_says_nothing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(outbound, "CONNECT_S", 0.2)
    done = threading.Event()

    def resolve(*_: Any, **__: Any) -> Any:
        done.wait(10)
        return []

    with pytest.raises(Upstream, match="did not answer in time"):
        ask(Outbound(Reach.ANY, resolve), "vm.test", 443)
    done.set()


def test_a_name_that_does_not_exist_is_unreachable() -> None:
    def resolve(*_: Any, **__: Any) -> Any:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    with pytest.raises(Upstream, match="Name or service not known"):
        ask(Outbound(Reach.ANY, resolve), "vm.test", 443)


def test_off_asks_nobody() -> None:
    with pytest.raises(Unavailable, match="outbound"):
        ask(Outbound(Reach.OFF), "vm.test", 443)


def test_only_so_many_ask_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outbound, "PLACES", 1)
    way = Outbound(Reach.ANY)

    with way.call(), pytest.raises(Unavailable, match="being asked already"), way.call():
        pass
    with way.call():
        pass
