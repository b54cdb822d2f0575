"""Outbound calls: time that is over is over, and a key in an address is told to nobody."""

from __future__ import annotations

import datetime
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from core.errors import CasemateError, Invalid, Upstream, UpstreamTimeout
from core.http import ANSWER_LIMIT, Answer, Peer, post_json

Play = Callable[[Callable[[socket.socket], None]], int]


@pytest.fixture
def play() -> Iterator[Play]:
    """Serves one connection with a function; gives its port."""
    threads: list[threading.Thread] = []

    def serve(speak: Callable[[socket.socket], None]) -> int:
        listener = socket.create_server(("127.0.0.1", 0))

        def one() -> None:
            with listener, listener.accept()[0] as connection:
                try:
                    speak(connection)
                except OSError:
                    pass  # the caller left

        threads.append(threading.Thread(target=one))
        threads[-1].start()
        port: int = listener.getsockname()[1]
        return port

    yield serve
    for each in threads:
        each.join(10)
        assert not each.is_alive()


def answer(body: bytes, head: bytes = b"HTTP/1.1 200 OK\r\n") -> Callable[[socket.socket], None]:
    def speak(connection: socket.socket) -> None:
        asked = b""
        while not asked.endswith(b"}"):
            asked += connection.recv(65536)
        connection.sendall(head + b"Content-Length: %d\r\n\r\n" % len(body) + body)

    return speak


def drip(first: bytes) -> Callable[[socket.socket], None]:
    def speak(connection: socket.socket) -> None:
        connection.sendall(first)
        while connection.send(b"x"):
            time.sleep(0.02)

    return speak


def test_an_object_is_posted_and_one_comes_back(play: Play) -> None:
    port = play(answer(b'{"a": "\xc3\xa4"}'))

    assert post_json(f"http://127.0.0.1:{port}/x?y", {"b": 1}, within_s=5) == {"a": "ä"}


@pytest.mark.parametrize(
    "first", [b"", b"HTTP/1.1 200 OK\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: 9999\r\n\r\n"]
)
def test_a_peer_that_drips_is_cut_off_in_time(play: Play, first: bytes) -> None:
    port = play(drip(first))
    began = time.monotonic()

    with pytest.raises(UpstreamTimeout, match=r"did not answer within 0\.3 s"):
        post_json(f"http://127.0.0.1:{port}", {}, within_s=0.3)
    assert time.monotonic() - began < 5


def test_a_peer_that_says_nothing_to_tls_is_cut_off_in_time(play: Play) -> None:
    port = play(lambda connection: connection.recv(1) and connection.recv(65536) and None)

    with pytest.raises((UpstreamTimeout, Upstream)):
        post_json(f"https://127.0.0.1:{port}", {}, within_s=0.3, check_certificate=False)


@pytest.mark.parametrize(
    ("speak", "text"),
    [
        (answer(b'{"error": "no"}', b"HTTP/1.1 400 Bad\r\n"), "refused: no"),
        (answer(b'{"message": "not"}', b"HTTP/1.1 404 Bad\r\n"), "refused: not"),
        (answer(b"x", b"HTTP/1.1 500 Bad\r\n"), "refused: status 500"),
        (answer(b"[1]"), "did not answer with a JSON object"),
        (answer(b"x" * (ANSWER_LIMIT + 1)), "answered with more than 1048576 bytes"),
        (lambda connection: connection.sendall(b"\0\1\2"), "cannot be reached"),
        (
            lambda connection: connection.recv(65536) and connection.sendall(b"\0secret\r\n"),
            "cannot be reached: it does not speak HTTP",
        ),
        (lambda connection: None, "cannot be reached"),
        (
            answer(b"", b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:1/\r\n"),
            "refused: status 302",
        ),
    ],
)
def test_what_is_no_answer_is_an_upstream_failure(
    play: Play, speak: Callable[[socket.socket], None], text: str
) -> None:
    port = play(speak)

    with pytest.raises(Upstream, match=text):
        post_json(f"http://127.0.0.1:{port}", {}, within_s=5)


def heard(connection: socket.socket) -> bytes:
    """A request without a body, answered with nothing."""
    asked = b""
    while not asked.endswith(b"\r\n\r\n"):
        asked += connection.recv(65536)
    connection.sendall(b"HTTP/1.1 204 None\r\n\r\n")
    return asked


def test_a_question_may_have_another_method_and_an_answer_another_status(play: Play) -> None:
    asked: list[bytes] = []
    port = play(lambda connection: asked.append(heard(connection)))

    answer = Peer(f"http://127.0.0.1:{port}/a?b").ask("GET", within_s=5, headers={"X-Y": "z"})

    assert answer == Answer(204, b"")
    assert asked[0].startswith(b"GET /a?b HTTP/1.1\r\n") and b"\r\nX-Y: z\r\n" in asked[0]


def test_a_name_and_password_of_the_address_are_shown_to_the_service(play: Play) -> None:
    asked: list[bytes] = []
    port = play(lambda connection: asked.append(heard(connection)))

    Peer(f"http://us%20er:p%40ss@127.0.0.1:{port}").ask("GET", within_s=5)

    # RFC 7617: base64 of `us er:p@ss`
    assert b"\r\nAuthorization: Basic dXMgZXI6cEBzcw==\r\n" in asked[0]


def test_a_proxy_of_the_environment_is_not_used(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    port = play(answer(b"{}"))
    assert post_json(f"http://127.0.0.1:{port}", {}, within_s=5) == {}


@pytest.mark.parametrize(
    ("path", "speak"),
    [
        ("/secret-key", None),
        ("/secret-key", lambda connection: connection.sendall(b"nonsense")),
        ("/secret-key", answer(b"no", b"HTTP/1.1 500 Bad\r\n")),
        ("/secret-key", drip(b"")),
        ("/secret key", None),
        (":x/secret-key", None),
    ],
)
def test_no_failure_tells_the_key_in_an_address(
    play: Play, path: str, speak: Callable[[socket.socket], None] | None
) -> None:
    port = play(speak) if speak else 1

    with pytest.raises(CasemateError) as refused:
        post_json(f"http://user:password@127.0.0.1:{port}{path}", {}, within_s=0.3)
    assert not any(word in refused.value.message for word in ("secret", "user", "password"))


def test_a_host_that_is_no_name_cannot_be_reached() -> None:
    with pytest.raises(Upstream, match="cannot be reached"):
        post_json("http://a..b", {}, within_s=5)


def test_a_name_server_that_says_nothing_is_not_waited_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    done = threading.Event()
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: done.wait(20) and [])
    began = time.monotonic()

    with pytest.raises(UpstreamTimeout, match=r"did not answer within 0\.3 s"):
        post_json("http://slow.example", {}, within_s=0.3)

    assert time.monotonic() - began < 5
    done.set()


def test_the_next_address_is_tried_when_the_first_takes_no_connection(
    play: Play, monkeypatch: pytest.MonkeyPatch
) -> None:
    port = play(answer(b"{}"))
    # Nobody listens on 127.0.0.2 there.
    addresses = [
        (socket.AF_INET, socket.SOCK_STREAM, 0, "", (host, port))
        for host in ("127.0.0.2", "127.0.0.1")
    ]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: addresses)

    assert post_json(f"http://two.example:{port}", {}, within_s=5) == {}


def test_a_service_may_be_at_a_unix_socket(tmp_path: Path) -> None:
    path = tmp_path / "socket"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
        listener.listen()

        def serve() -> None:
            with listener.accept()[0] as connection:
                heard(connection)

        serving = threading.Thread(target=serve)
        serving.start()
        assert Peer("http://agent/x", unix=path).ask("GET", within_s=5).status == 204
        serving.join(10)

    with pytest.raises(Upstream, match="the agent cannot be reached"):
        Peer("http://agent/x", "the agent", unix=tmp_path / "none").ask("GET", within_s=5)


def test_a_certificate_of_nobody_is_refused_unless_that_is_meant(
    play: Play, tmp_path: Path
) -> None:
    context = own_certificate(tmp_path)

    def speak(connection: socket.socket) -> None:
        with context.wrap_socket(connection, server_side=True) as secure:
            answer(b"{}")(secure)

    url = f"https://127.0.0.1:{play(speak)}"
    with pytest.raises(Upstream, match="cannot be reached: .*certificate verify failed"):
        post_json(url, {}, within_s=5)
    url = f"https://127.0.0.1:{play(speak)}"
    assert post_json(url, {}, within_s=5, check_certificate=False) == {}


def own_certificate(folder: Path) -> ssl.SSLContext:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody")])
    now = datetime.datetime.now(datetime.UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "pem").write_bytes(
        key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(pem)
    )
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "pem")
    return context


@pytest.mark.parametrize("url", ["ftp://a", "http://a:99999", ""])
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(Invalid, match="is not an http"):
        post_json(url, {}, within_s=1)
