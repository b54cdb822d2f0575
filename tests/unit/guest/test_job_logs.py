"""The log websocket, spoken to byte by byte as clients do."""

from __future__ import annotations

import base64
import os
import socket
import struct
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from core.messages import Order
from guest.job import Job
from guest.job_logs import Incoming, LogServer, frame, moment
from tests.common.waiting import until


class Client:
    """The client's side of a websocket."""

    def __init__(self, address: tuple[str, int], target: str = "/logs_ws") -> None:
        self.socket = socket.create_connection(address, timeout=10)
        self.file = self.socket.makefile("rb")
        key = base64.b64encode(bytes(16)).decode()
        self.socket.sendall(
            f"GET {target} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = []
        while line := self.file.readline().strip():
            head.append(line)
        self.status, self.head = head[0], head

    def frame(self) -> tuple[int, bytes]:
        """The next frame: its kind and what it holds."""
        first, size = self.file.read(2)
        assert first & 0x80 and not size & 0x80, "final and unmasked"
        if size == 126:
            (size,) = struct.unpack(">H", self.file.read(2))
        elif size == 127:
            (size,) = struct.unpack(">Q", self.file.read(8))
        return first & 0x0F, self.file.read(size)

    def say(self, kind: int, data: bytes) -> None:
        """One masked frame."""
        mask = os.urandom(4)
        masked = bytes(byte ^ mask[i % 4] for i, byte in enumerate(data))
        self.socket.sendall(bytes([0x80 | kind, 0x80 | len(data)]) + mask + masked)

    def all(self) -> bytes:
        """Everything up to the server's goodbye."""
        said = b""
        while True:
            kind, data = self.frame()
            if kind == 0x8:
                assert data == struct.pack(">H", 1000)
                return said
            assert kind == 0x2
            said += data


@pytest.fixture
def jobs() -> list[Job]:
    return []


@pytest.fixture
def address(jobs: list[Job]) -> Iterator[tuple[str, int]]:
    with socket.create_server(("127.0.0.1", 0)) as listening:
        LogServer(listening, lambda: jobs[-1] if jobs else None).start()
        yield listening.getsockname()
        for job in jobs:
            job.stop(0)
        listening.shutdown(socket.SHUT_RDWR)


def begin(script: str, folder: Path) -> Job:
    order = Order("j", command=("/bin/bash", "-c", script), home_dir=str(folder))
    job = Job(order, folder / "files", None, threading.Condition())
    threading.Thread(target=job.run, args=(lambda: None,), daemon=True).start()
    until(lambda: job.output.exists())
    return job


def test_it_replays_follows_and_closes_with_the_job(
    address: tuple[str, int], jobs: list[Job], tmp_path: Path
) -> None:
    go = tmp_path / "go"
    jobs.append(begin(f"echo before; until [ -e {go} ]; do sleep 0.05; done; echo after", tmp_path))
    until(lambda: jobs[0].size)
    client = Client(address)

    assert client.status == b"HTTP/1.1 101 Switching Protocols"
    # RFC 6455: the digest of sixteen zero bytes in base64 and the protocol's GUID.
    assert b"Sec-WebSocket-Accept: ICX+Yqv66kxgM0FcWaLWlFLwTAI=" in client.head
    assert client.frame() == (0x2, b"before\r\n")
    go.touch()
    assert client.all() == b"after\r\n"


def test_a_job_that_is_over_is_replayed_whole(
    address: tuple[str, int], jobs: list[Job], tmp_path: Path
) -> None:
    jobs.append(begin("head -c 200000 /dev/zero | tr '\\0' x", tmp_path))
    until(lambda: jobs[0].is_over)

    assert Client(address).all() == b"x" * 200_000


def test_it_replays_from_a_time_on(
    address: tuple[str, int], jobs: list[Job], tmp_path: Path
) -> None:
    jobs.append(begin("echo long ago", tmp_path))
    until(lambda: jobs[0].is_over)

    assert Client(address, "/logs_ws?start_time=2000-01-01T00:00:00%2B00:00").all() != b""
    assert Client(address, "/logs_ws?start_time=2100-01-01T00:00:00Z").all() == b""


def test_pings_are_answered_while_the_job_runs(
    address: tuple[str, int], jobs: list[Job], tmp_path: Path
) -> None:
    jobs.append(begin("sleep 1000", tmp_path))
    client = Client(address)

    client.say(0x9, b"are you there")
    assert client.frame() == (0xA, b"are you there")
    client.say(0x8, struct.pack(">H", 1000))
    assert client.frame() == (0x8, struct.pack(">H", 1000))
    assert client.file.read() == b""


@pytest.mark.parametrize("target", ["/", "/logs_ws/x", "/favicon.ico"])
def test_nothing_else_is_served(
    address: tuple[str, int], jobs: list[Job], tmp_path: Path, target: str
) -> None:
    jobs.append(begin("true", tmp_path))

    assert Client(address, target).status == b"HTTP/1.1 404 Not Found"


def test_without_a_job_there_is_no_log(address: tuple[str, int]) -> None:
    assert Client(address).status == b"HTTP/1.1 404 Not Found"


@pytest.mark.parametrize(
    "said", [b"\x82\x05hello", b"\x82\xfe\x10\x00" + bytes(20), b"\x89\xff" + bytes(20)]
)
def test_a_client_that_breaks_the_protocol_is_left(said: bytes) -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        theirs.sendall(said)

        with pytest.raises(ValueError, match="a client"):
            Incoming(ours).answer(5)


@pytest.mark.parametrize(
    ("size", "head"),
    [(0, b"\x82\x00"), (125, b"\x82\x7d"), (126, b"\x82\x7e\x00\x7e"), (65535, b"\x82\x7e\xff\xff"),
     (65536, b"\x82\x7f\0\0\0\0\0\x01\0\0")],
)  # fmt: skip
def test_the_length_of_a_message_has_the_shortest_form(size: int, head: bytes) -> None:
    assert frame(0x2, bytes(size)) == head + bytes(size)


@pytest.mark.parametrize(
    "text",
    ["2026-01-02T03:04:05Z", "2026-01-02T03:04:05", "2026-01-02T05:04:05+02:00", "2026-01-02T05:04:05 02:00"],
)  # fmt: skip
def test_times_are_read_with_and_without_a_zone(text: str) -> None:
    assert moment(text) == 1767323045.0
