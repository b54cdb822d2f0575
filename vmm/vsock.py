"""HTTP over vsock, for guests that speak it as dstack's do (vmm.md section 10); the peer is hostile.

`ask` puts one question to a guest's agent; `Listener` is the host API for all guests, who are known by their number.
Both work on any stream socket, which is how they are tested where there is no vsock.
"""

from __future__ import annotations

import contextlib
import http.client
import io
import json
import logging
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import urlsplit

from core.errors import CasemateError, Invalid, NotFound, TooLarge, Upstream, status_of
from core.prpc import read_json

logger = logging.getLogger(__name__)

AGENT_PORT = 8000
REQUEST_LIMIT = 1024**2
REQUEST_S = 5.0
# Questions at work at a time: of all guests, and of one.
AT_ONCE = 32
OF_ONE = 2
# Questions of one guest a second; those above are refused.
PER_SECOND = 50

Answer = Callable[[str, object], object]


class _Patient(io.RawIOBase):
    """Reads a socket until a moment in time, however slowly its peer sends; then TimeoutError."""

    def __init__(self, connection: socket.socket, deadline: float) -> None:
        self.connection = connection
        self.deadline = deadline

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        left = self.deadline - time.monotonic()
        if left <= 0:
            raise TimeoutError
        self.connection.settimeout(left)
        return self.connection.recv_into(buffer)

    def makefile(self, mode: str) -> io.BufferedReader:
        """What http.client asks of a socket."""
        return io.BufferedReader(self)


def connect(cid: int, timeout_s: float) -> socket.socket:
    """A connection to the agent of the guest with this number."""
    connection = socket.socket(socket.AF_VSOCK)
    try:
        connection.settimeout(timeout_s)
        connection.connect((cid, AGENT_PORT))
    except OSError:
        connection.close()
        raise
    return connection


def ask(
    connection: socket.socket,
    method: str,
    params: dict[str, Any],
    *,
    first_by: float,
    all_by: float,
    limit: int,
) -> Any:
    """Asks over an open connection and returns the JSON value answered; TimeoutError when it is late.

    Upstream when the guest refuses, breaks HTTP or answers with more than `limit` bytes.
    """
    body = json.dumps(params).encode()
    head = (
        f"POST /api/{method}?json HTTP/1.1\r\nHost: guest\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    connection.sendall(head.encode() + body)
    reader = _Patient(connection, first_by)
    response = http.client.HTTPResponse(reader, method="POST")  # type: ignore[arg-type]
    try:
        response.begin()
        reader.deadline = all_by
        text = response.read(limit + 1)
    except (http.client.HTTPException, ValueError) as error:
        raise Upstream(f"the guest agent does not speak HTTP: {type(error).__name__}") from None
    if len(text) > limit:
        raise Upstream(f"the guest's answer is larger than {limit} bytes")
    try:
        value = read_json(text) if text.strip() not in (b"", b"null") else None
    except Invalid:
        raise Upstream("the guest agent's answer is not a JSON object, or holds too much") from None
    if response.status != 200:
        said = value.get("message") or value.get("error") if isinstance(value, dict) else None
        raise Upstream(f"guest agent: {str(said or response.status)[:500]}")
    return value


class Listener:
    """The host API on a listening socket; `find` gives the answers for a peer, or raises NotFound."""

    def __init__(self, listening: socket.socket, find: Callable[[Any], Answer]) -> None:
        self.listening = listening
        self.find = find
        self.pool = ThreadPoolExecutor(AT_ONCE, thread_name_prefix="vsock")
        self.lock = threading.Lock()
        self.active: Counter[Any] = Counter()
        self.second = 0
        self.asked: Counter[Any] = Counter()

    @classmethod
    def on_vsock(cls, port: int, find: Callable[[int], Answer]) -> Listener:
        """Listens for guests; OSError where the kernel has no vsock or the port is taken."""
        listening = socket.socket(socket.AF_VSOCK)
        try:
            listening.bind((socket.VMADDR_CID_ANY, port))
            listening.listen(128)
        except OSError:
            listening.close()
            raise
        # The peer's number is its identity: the kernel says it, not the guest.
        return cls(listening, lambda peer: find(peer[0]))

    def start(self) -> None:
        """Serves in threads of its own until `close`."""
        threading.Thread(target=self._accept, name="vsock", daemon=True).start()

    def close(self) -> None:
        """Takes no more connections."""
        with contextlib.suppress(OSError):
            self.listening.shutdown(socket.SHUT_RDWR)  # wakes the thread that accepts
        self.listening.close()
        self.pool.shutdown(wait=False, cancel_futures=True)

    def _accept(self) -> None:
        while True:
            try:
                connection, peer = self.listening.accept()
            except OSError:
                return  # closed
            who = peer[0] if isinstance(peer, tuple) else peer
            if self._admit(who):
                self.pool.submit(self._serve, connection, peer, who)
            else:
                connection.close()

    def _admit(self, who: Any) -> bool:
        with self.lock:
            if self.second != int(time.monotonic()):
                self.second = int(time.monotonic())
                self.asked.clear()
            self.asked[who] += 1
            if self.asked[who] > PER_SECOND or self.active[who] >= OF_ONE:
                return False
            if self.active.total() >= AT_ONCE:
                return False
            self.active[who] += 1
            return True

    def _serve(self, connection: socket.socket, peer: Any, who: Any) -> None:
        try:
            with connection:
                serve(connection, lambda method, params: self.find(peer)(method, params))
        except Exception:  # a thread of the pool would swallow it without a word
            logger.exception("serving a guest failed")
        finally:
            with self.lock:
                self.active[who] -= 1
                if not self.active[who]:
                    del self.active[who]


def serve(connection: socket.socket, answer: Answer) -> None:
    """Answers one request of a guest and says goodbye."""
    try:
        method, body = _read_request(connection)
        status, value = 200, answer(method, read_json(body))
    except CasemateError as error:
        status, value = status_of(error), {"message": error.message, "error": error.message}
    except (OSError, http.client.HTTPException):
        return  # gone, late or no HTTP: nobody to answer
    text = json.dumps(value).encode()
    head = (
        f"HTTP/1.1 {status} {http.client.responses.get(status, 'Refused')}\r\nConnection: close\r\n"
        f"Content-Type: application/json\r\nContent-Length: {len(text)}\r\n\r\n"
    )
    try:
        connection.settimeout(REQUEST_S)
        connection.sendall(head.encode() + text)
    except OSError:
        return


def _read_request(connection: socket.socket) -> tuple[str, bytes]:
    reader = _Patient(connection, time.monotonic() + REQUEST_S).makefile("rb")
    words = reader.readline(4096).split()
    if len(words) != 3 or not words[2].startswith(b"HTTP/1."):
        raise http.client.BadStatusLine("no request line")
    headers = http.client.parse_headers(reader)
    path = urlsplit(words[1].decode("latin-1")).path
    if not path.startswith("/api/"):
        raise NotFound("the host API is below /api/")
    if headers.get("transfer-encoding"):
        raise Invalid("a body needs a Content-Length here")
    length = headers.get("content-length") or "0"
    if not length.isascii() or not length.isdigit() or len(length) > 12:
        raise Invalid("Content-Length must be a whole number")
    if int(length) > REQUEST_LIMIT:
        raise TooLarge(f"a request may have at most {REQUEST_LIMIT} bytes")
    return path.removeprefix("/api/"), reader.read(int(length))
