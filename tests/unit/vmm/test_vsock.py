from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from core.errors import Invalid, NotFound, Upstream, UpstreamTimeout
from tests.common.waiting import until
from vmm import channel, vsock

Play = Callable[[socket.socket], None]


@pytest.fixture
def guest(data_dir: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Play], None]]:
    """Lets a function play the agent of the guest with number 1234, behind a Unix socket."""
    (data_dir / "guest.cid").write_text("1234")
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(data_dir / "agent"))
    listener.listen()

    def connect(cid: int, timeout_s: float) -> socket.socket:
        assert cid == 1234
        connection = socket.socket(socket.AF_UNIX)
        connection.settimeout(timeout_s)
        connection.connect(str(data_dir / "agent"))
        return connection

    monkeypatch.setattr(vsock, "connect", connect)

    def start(play: Play) -> None:
        def run() -> None:
            with listener.accept()[0] as connection:
                try:
                    play(connection)
                except OSError:
                    return  # the caller had enough

        threading.Thread(target=run, daemon=True).start()

    yield start
    listener.close()


def response(body: bytes, status: int = 200, extra: str = "") -> bytes:
    head = f"HTTP/1.1 {status} X\r\nContent-Length: {len(body)}\r\n{extra}\r\n"
    return head.encode() + body


def saying(*parts: bytes) -> Play:
    def play(connection: socket.socket) -> None:
        connection.recv(65536)
        for part in parts:
            connection.sendall(part)

    return play


def test_a_guest_with_a_vsock_number_is_asked_over_http(
    data_dir: Path, guest: Callable[[Play], None]
) -> None:
    asked: list[bytes] = []

    def play(connection: socket.socket) -> None:
        asked.append(connection.recv(65536))
        connection.sendall(response(b'{"version": "0.5"}'))

    guest(play)

    assert channel.ask(data_dir, "Info", {"a": 1}) == {"version": "0.5"}
    head, _, body = asked[0].partition(b"\r\n\r\n")
    assert head.startswith(b"POST /api/Info?json HTTP/1.1\r\n")
    assert json.loads(body) == {"a": 1}


@pytest.mark.parametrize("body", [b"", b"null"])
def test_an_empty_answer_is_nothing(
    data_dir: Path, guest: Callable[[Play], None], body: bytes
) -> None:
    guest(saying(response(body)))

    assert channel.ask(data_dir, "Shutdown", {}) is None


def test_an_answer_in_chunks_is_put_together(data_dir: Path, guest: Callable[[Play], None]) -> None:
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    guest(saying(head, b'3\r\n{"a\r\n', b'4\r\n":1}\r\n', b"0\r\n\r\n"))

    assert channel.ask(data_dir, "Info", {}) == {"a": 1}


@pytest.mark.parametrize(
    ("said", "match"),
    [
        (response(b'{"error": "no such thing"}', 400), "guest agent: no such thing"),
        (response(b"{}", 500), "guest agent: 500"),
        (response(b"", 302, "Location: http://127.0.0.1/\r\n"), "guest agent: 302"),
        (response(b"<html>"), "is not a JSON object"),
        (response(b"[" * 100_000), "is not a JSON object"),
        (response(b'{"containers": [' + b"{}," * 200_000 + b"{}]}"), "holds too much"),
        (b"SSH-2.0-OpenSSH\r\n\r\n", "does not speak HTTP"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * 1000 + b"\r\n", "does not speak HTTP"),
        (b"", "does not speak HTTP"),
        (response(b"1" * (channel.ANSWER_LIMIT + 1)), "larger than"),
    ],
)
def test_a_guest_that_refuses_or_breaks_the_form_is_an_upstream_fault(
    data_dir: Path, guest: Callable[[Play], None], said: bytes, match: str
) -> None:
    guest(saying(said))

    with pytest.raises(Upstream, match=match):
        channel.ask(data_dir, "Info", {})


@pytest.mark.parametrize("begun", [b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n1"])
def test_a_guest_that_drips_is_given_up_in_time(
    data_dir: Path, guest: Callable[[Play], None], begun: bytes
) -> None:
    ended = threading.Event()

    def play(connection: socket.socket) -> None:
        connection.recv(65536)
        connection.sendall(begun)
        while not ended.wait(0.02):
            connection.sendall(b" ")

    guest(play)
    began = time.monotonic()

    with pytest.raises(UpstreamTimeout):
        channel.ask(data_dir, "Info", {}, begin_s=0.3, whole_s=0.5)

    ended.set()
    assert time.monotonic() - began < 4.5


def test_a_guest_that_is_not_there_is_told(data_dir: Path) -> None:
    (data_dir / "guest.cid").write_text("4294967294")

    with pytest.raises((Upstream, UpstreamTimeout)):
        channel.ask(data_dir, "Info", {}, begin_s=0.3)


# The host's side ------------------------------------------------------------------------------------


def exchange(request: bytes, answer: vsock.Answer, *, half_closed: bool = True) -> bytes:
    """What the host API says to these bytes."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        ours.sendall(request)
        if half_closed:
            ours.shutdown(socket.SHUT_WR)
        vsock.serve(theirs, answer)
        theirs.close()
        with ours.makefile("rb") as said:
            return said.read()


def echo(method: str, params: object) -> object:
    if method == "Refused":
        raise Invalid.field("a", "is wrong")
    return {"method": method, "params": params}


def post(path: str, body: bytes = b"", extra: str = "") -> bytes:
    return f"POST {path} HTTP/1.1\r\nContent-Length: {len(body)}\r\n{extra}\r\n".encode() + body


def test_a_guests_question_is_answered_as_json() -> None:
    said = exchange(post("/api/Notify?json", b'{"event": "x"}'), echo, half_closed=False)

    head, _, body = said.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200 ")
    assert json.loads(body) == {"method": "Notify", "params": {"event": "x"}}


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (post("/api/Refused"), 400),
        (post("/other"), 404),
        (post("/api/Info", b"{"), 400),
        (b"POST /api/Info HTTP/1.1\r\nContent-Length: 1048577\r\n\r\n", 413),
        (b"POST /api/Info HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 400),
        (b"POST /api/Info HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400),
    ],
)
def test_a_refusal_has_its_status_and_both_names(request_: bytes, status: int) -> None:
    said = exchange(request_, echo)

    head, _, body = said.partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode()
    told = json.loads(body)
    assert told["message"] == told["error"] != ""


@settings(max_examples=300)
@given(st.binary(max_size=200))
def test_whatever_a_guest_sends_ends_in_a_refusal_or_silence(garbage: bytes) -> None:
    for request in (garbage, b"POST /api/Info HTTP/1.1\r\n" + garbage, post("/api/Info", garbage)):
        said = exchange(request, echo)
        assert said == b"" or said.split()[1] in (b"200", b"400", b"404", b"413")


def test_a_guest_that_says_nothing_does_not_hold_us(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock, "REQUEST_S", 0.2)
    began = time.monotonic()

    assert (
        exchange(b"POST /api/Info HTTP/1.1\r\nContent-Length: 9\r\n", echo, half_closed=False)
        == b""
    )

    assert time.monotonic() - began < 4.5


@pytest.fixture
def served(data_dir: Path) -> Iterator[Path]:
    """A listener whose every peer is one guest; "slow" waits until the file `go` is there."""
    path = data_dir / "host"
    listening = socket.socket(socket.AF_UNIX)
    listening.bind(str(path))
    listening.listen(128)

    def find(peer: Any) -> vsock.Answer:
        def answer(method: str, params: object) -> object:
            if method == "Slow":
                until((data_dir / "go").exists)
            if method == "Stranger":
                raise NotFound("no running VM has the number 7")
            return method

        return answer

    listener = vsock.Listener(listening, find)
    listener.start()
    yield path
    (data_dir / "go").touch()
    listener.close()


def call(path: Path, method: str) -> bytes:
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(10)
        connection.connect(str(path))
        try:
            connection.sendall(post(f"/api/{method}"))
            with connection.makefile("rb") as said:
                return said.read()
        except OSError:
            return b""


def test_the_listener_answers_one_after_another(served: Path) -> None:
    assert b'"Info"' in call(served, "Info")
    assert b"404" in call(served, "Stranger")
    assert b'"Info"' in call(served, "Info")


def test_one_guest_has_few_questions_at_a_time(served: Path, data_dir: Path) -> None:
    slow = [threading.Thread(target=call, args=(served, "Slow")) for _ in range(vsock.OF_ONE)]
    for each in slow:
        each.start()

    until(lambda: call(served, "Info") == b"")  # turned away while they wait

    (data_dir / "go").touch()
    for each in slow:
        each.join(10)
    assert until(lambda: b'"Info"' in call(served, "Info"))


def test_one_guest_has_a_rate(served: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vsock, "PER_SECOND", 3)  # a busy machine is slower than the real one

    until(lambda: call(served, "Info") == b"", what="a call too many")

    assert until(lambda: b'"Info"' in call(served, "Info"))
