"""The output of the job for attached clients: a websocket on the guest's own loopback, which SSH forwards.

`/logs_ws[?start_time=ISO]` replays from the start, or from that time, as binary messages, follows, and closes when the
job is over.  Source: runs.md section 7 (what clients ask for); RFC 6455, the server's side, messages of one frame.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
import select
import socket
import struct
import threading
import time
from collections.abc import Callable
from datetime import UTC, datetime
from urllib.parse import parse_qs, urlsplit

from guest.job import READ_SIZE, Job

logger = logging.getLogger(__name__)

PORT = 10999
# Each is a thread; whoever attaches has one or two.
CLIENTS_MOST = 32
REQUEST_LIMIT = 8192
STALLED_S = 30.0
LOOK_S = 0.1
# RFC 6455 section 1.3.
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_BINARY, _CLOSE, _PING, _PONG = 0x2, 0x8, 0x9, 0xA
_FIN, _MASKED = 0x80, 0x80
_NORMAL = struct.pack(">H", 1000)
_CONTROL_MOST = 125


class LogServer:
    """Serves the output of the job that `current` names."""

    def __init__(self, listening: socket.socket, current: Callable[[], Job | None]) -> None:
        self._listening = listening
        self._current = current
        self._free = threading.BoundedSemaphore(CLIENTS_MOST)

    def start(self) -> None:
        """Serves in threads of its own for as long as this process lives."""
        threading.Thread(target=self._accept, name="job logs", daemon=True).start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return  # closed
            if self._free.acquire(blocking=False):
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()
            else:
                client.close()

    def _serve(self, client: socket.socket) -> None:
        try:
            with client, contextlib.suppress(OSError, ValueError):
                client.settimeout(STALLED_S)
                target, key = read_request(client)
                url, job = urlsplit(target), self._current()
                if url.path != "/logs_ws" or not key or job is None:
                    client.sendall(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
                    return
                offset = job.offset_at(moment(since[0])) if (since := _since(url.query)) else 0
                client.sendall(_upgrade(key))
                _replay(client, job, offset)
        finally:
            self._free.release()


def _since(query: str) -> list[str]:
    return parse_qs(query).get("start_time", [])


def moment(text: str) -> float:
    """An ISO 8601 time as seconds since 1970, UTC where it names no zone; ValueError for other text."""
    # A plus of a zone that was not quoted comes as a space.
    found = datetime.fromisoformat(text.strip().replace(" ", "+"))
    return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()


def read_request(client: socket.socket) -> tuple[str, bytes]:
    """The target and the websocket key of a request; ValueError when it is none."""
    head = b""
    while b"\r\n\r\n" not in head:
        if len(head) > REQUEST_LIMIT or not (data := client.recv(4096)):
            raise ValueError("no request")
        head += data
    first, *lines = head.split(b"\r\n\r\n")[0].split(b"\r\n")
    method, target, _ = first.decode("latin-1").split(" ", 2)
    fields = {
        name.strip().lower(): value.strip() for name, _, value in (x.partition(b":") for x in lines)
    }
    wants = method == "GET" and fields.get(b"upgrade", b"").lower() == b"websocket"
    return target, fields.get(b"sec-websocket-key", b"") if wants else b""


def _upgrade(key: bytes) -> bytes:
    accept = base64.b64encode(hashlib.sha1(key + _GUID).digest())
    return (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
    )


def frame(kind: int, data: bytes) -> bytes:
    """A message of one frame, unmasked as a server's are."""
    head, size = bytes([_FIN | kind]), len(data)
    if size < 126:
        return head + bytes([size]) + data
    if size < 2**16:
        return head + struct.pack(">BH", 126, size) + data
    return head + struct.pack(">BQ", 127, size) + data


def _replay(client: socket.socket, job: Job, offset: int) -> None:
    output = os.open(job.output, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
    incoming = Incoming(client)
    try:
        while True:
            # Asked before the file is read: what was printed before the end is in it then.
            is_over = job.is_over
            data = os.pread(output, READ_SIZE, offset)
            if data:
                client.sendall(frame(_BINARY, data))
                offset += len(data)
            elif is_over:
                client.sendall(frame(_CLOSE, _NORMAL))
                _wait_for_goodbye(client)
                return
            if not incoming.answer(0 if data else LOOK_S):
                return
    finally:
        os.close(output)


def _wait_for_goodbye(client: socket.socket) -> None:
    # Closing at once would take back what the client has not read yet.
    client.shutdown(socket.SHUT_WR)
    deadline = time.monotonic() + STALLED_S
    while time.monotonic() < deadline and client.recv(4096):
        pass


class Incoming:
    """What a client says: pings are answered, a close ends it, all else is skipped."""

    def __init__(self, client: socket.socket) -> None:
        self._client = client
        self._poller = select.poll()
        self._poller.register(client, select.POLLIN)
        self._buffer = bytearray()

    def answer(self, wait_s: float) -> bool:
        """Waits up to `wait_s` for the client and answers it; False when it has said goodbye."""
        if self._poller.poll(wait_s * 1000):
            data = self._client.recv(4096)
            if not data:
                return False
            self._buffer += data
        while (found := self._frame()) is not None:
            kind, payload = found
            if kind == _CLOSE:
                self._client.sendall(frame(_CLOSE, payload[:2]))
                return False
            if kind == _PING:
                self._client.sendall(frame(_PONG, payload))
        return True

    def _frame(self) -> tuple[int, bytes] | None:
        if len(self._buffer) < 2:
            return None
        kind, size = self._buffer[0] & 0x0F, self._buffer[1] & 0x7F
        if size > _CONTROL_MOST or not self._buffer[1] & _MASKED:
            raise ValueError("a client has nothing long to say here, and masks what it says")
        if len(self._buffer) < 6 + size:
            return None
        mask, payload = self._buffer[2:6], self._buffer[6 : 6 + size]
        del self._buffer[: 6 + size]
        return kind, bytes(byte ^ mask[i % 4] for i, byte in enumerate(payload))


def listen() -> socket.socket:
    """The socket that attached clients are led to."""
    return socket.create_server(("127.0.0.1", PORT), backlog=CLIENTS_MOST)
