"""Outbound HTTP: one call to a service that may be slow, large, hostile or not there.

The standard library's client and no other: it follows no redirect and takes no proxy from the environment.
What is said of a failure names the service, never its whole address, which may hold a key.
"""

from __future__ import annotations

import base64
import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, TypeVar
from urllib.parse import SplitResult, unquote, urlsplit

from core.errors import CasemateError, Invalid, Unavailable, Upstream, UpstreamTimeout
from core.prpc import read_json
from core.urls import is_web_address

Found = TypeVar("Found")
ANSWER_LIMIT = 1024**2
_PORTS = {"http": 80, "https": 443}
_PIECE = 256 * 1024
Question = tuple[str, bytes | None, Mapping[str, str]]  # method, body, headers


@dataclass(frozen=True)
class Answer:
    """What came back: the status, whichever it is, and the whole body."""

    status: int
    body: bytes


@dataclass(frozen=True)
class Peer:
    """A service: its address, what failures call it (its host and port by default), how it is reached.

    With `unix` the connection goes to that socket, and the address says only what is asked for.
    """

    url: str
    called: str = ""
    check_certificate: bool = True
    unix: Path | None = None

    @property
    def name(self) -> str:
        """What failures call it."""
        parts = urlsplit(self.url)
        return self.called or f"{parts.hostname}:{_port(parts)}"

    def ask(
        self,
        method: str,
        body: bytes | None = None,
        *,
        within_s: float,
        headers: Mapping[str, str] | None = None,
        limit: int = ANSWER_LIMIT,
    ) -> Answer:
        """Sends one request and returns what comes back, all within `within_s` seconds.

        Raises UpstreamTimeout when time is over, however the peer spends it; Upstream when it cannot be
        reached or answers with more than `limit` bytes.
        """
        with self._asked((method, body, headers or {}), within_s) as (answer, deadline):
            found = read_answer(answer, limit, deadline)
        if len(found.body) > limit:
            raise Upstream(f"{self.name} answered with more than {limit} bytes")
        return found

    def save(self, file: BinaryIO, *, within_s: float, limit: int) -> None:
        """Writes what a GET gives into a file: for what is too large to be held.  Raises what ask() does.

        Upstream also when the status is another than 200.
        """
        with self._asked(("GET", None, {}), within_s) as (answer, deadline):
            if answer.status != 200:
                raise Upstream(f"{self.name} refused: status {answer.status}")
            while piece := read_answer(answer, _PIECE, deadline).body:
                limit -= len(piece)
                if limit < 0:
                    raise Upstream(f"{self.name} answered with too many bytes")
                try:
                    file.write(piece)
                except OSError as error:
                    raise Unavailable(f"no room for what {self.name} sends: {error}") from None

    @contextlib.contextmanager
    def _asked(
        self, question: Question, within_s: float
    ) -> Iterator[tuple[http.client.HTTPResponse, float]]:
        """The answer's head, its body still to be read, and the deadline; failures in words of ours."""
        if not is_web_address(self.url):
            raise Invalid("the address of the service is not an http(s) address with a host")
        method, body, headers = question
        deadline = time.monotonic() + within_s
        try:
            with self._connection(deadline) as connection:
                sent = {"User-Agent": "casemate", **_credentials(self.url), **headers}
                connection.request(method, _target(self.url), body, sent)
                yield connection.getresponse(), deadline
        except (OSError, http.client.HTTPException, UnicodeError) as error:
            if time.monotonic() >= deadline or isinstance(error, TimeoutError):
                raise UpstreamTimeout(f"{self.name} did not answer within {within_s:g} s") from None
            raise Upstream(f"{self.name} cannot be reached: {_why(error)}") from None

    @contextlib.contextmanager
    def _connection(self, deadline: float) -> Iterator[http.client.HTTPConnection]:
        parts = urlsplit(self.url)
        connection = http.client.HTTPConnection(str(parts.hostname), _port(parts))
        if self.unix is None:
            plain = connected(str(parts.hostname), _port(parts), deadline)
        else:
            plain = _of_unix(self.unix, deadline)
        with contextlib.closing(connection), plain, cut_at(deadline, plain):
            connection.sock = plain
            if parts.scheme == "https":
                context = _context(self.check_certificate)
                connection.sock = context.wrap_socket(plain, server_hostname=parts.hostname)
            yield connection


def post_json(
    url: str, message: dict[str, Any], *, within_s: float, check_certificate: bool = True
) -> dict[str, Any]:
    """Posts a JSON object and returns the one that comes back; raises what Peer.ask does.

    Upstream also when the service refuses (the text has its reason) or answers with something else.
    """
    peer = Peer(url, check_certificate=check_certificate)
    kind = {"Content-Type": "application/json"}
    told = peer.ask("POST", json.dumps(message).encode(), within_s=within_s, headers=kind)
    try:
        answer = read_json(told.body)
    except CasemateError:
        answer = None
    if told.status != 200:
        raise Upstream(f"{peer.name} refused: {_reason(answer) or f'status {told.status}'}")
    if not isinstance(answer, dict):
        raise Upstream(f"{peer.name} did not answer with a JSON object")
    return answer


def _why(error: Exception) -> str:
    if isinstance(error, http.client.IncompleteRead):
        return "its answer was cut short"
    if isinstance(error, http.client.HTTPException):
        return "it does not speak HTTP"  # the error's own text is whatever it sent instead
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def _port(parts: SplitResult) -> int:
    return parts.port or _PORTS[parts.scheme]


def _target(url: str) -> str:
    parts = urlsplit(url)
    return (parts.path or "/") + (f"?{parts.query}" if parts.query else "")


def _credentials(url: str) -> dict[str, str]:
    """What an address of the form http://user:password@host asks to be shown there."""
    parts = urlsplit(url)
    if parts.username is None:
        return {}
    pair = f"{unquote(parts.username)}:{unquote(parts.password or '')}"
    return {"Authorization": "Basic " + base64.b64encode(pair.encode()).decode()}


def connected(host: str, port: int, deadline: float) -> socket.socket:
    """A connection to the first of the host's addresses that takes one.

    None gets more than half of the time that is left: the first may swallow what it is sent.
    """
    failure = OSError("the host has no address")
    found = in_time(lambda: socket.getaddrinfo(host, port, type=socket.SOCK_STREAM), deadline)
    for family, kind, protocol, _, address in found:
        made = socket.socket(family, kind, protocol)
        try:
            made.settimeout(left(deadline) / 2)
            made.connect(address)
            made.settimeout(left(deadline))
            return made
        except OSError as error:
            made.close()
            failure = error
    raise failure


def _of_unix(path: Path, deadline: float) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    try:
        made.settimeout(left(deadline))
        made.connect(str(path))
    except OSError:
        made.close()
        raise
    return made


def left(deadline: float) -> float:
    """The seconds until a deadline (monotonic); TimeoutError when it is over."""
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise TimeoutError
    return seconds


def in_time(ask: Callable[[], Found], until: float) -> Found:
    """What a call answers that knows no time-out itself; its thread is left behind when time is over.

    For names: a resolver may be as slow as it likes.  Raises TimeoutError then, and what the call raises.
    """
    answers: list[Found] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except (OSError, UnicodeError) as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="resolve", daemon=True)
    thread.start()
    thread.join(left(until))
    if failures:
        raise failures[0]
    if not answers:
        raise TimeoutError("its name was not resolved in time")
    return answers[0]


@contextlib.contextmanager
def cut_at(deadline: float, plain: socket.socket) -> Iterator[None]:
    """Ends the connection when time is over: a time-out of the socket counts from byte to byte."""
    with plain.dup() as handle:  # TLS takes the other one away
        timer = threading.Timer(left(deadline), _cut, [handle])
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
            timer.join()  # it must not cut whatever has the handle's number next


def _cut(handle: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        handle.shutdown(socket.SHUT_RDWR)


def read_answer(answer: http.client.HTTPResponse, limit: int, deadline: float) -> Answer:
    """A whole answer, or one byte more than `limit`; an error of http.client's when it was cut short."""
    body = answer.read(limit + 1)
    if answer.length and len(body) <= limit:
        raise http.client.IncompleteRead(body, answer.length)
    if time.monotonic() >= deadline:  # cut off, which looks like an end
        raise TimeoutError
    return Answer(answer.status, body)


def _context(check: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not check:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _reason(answer: object) -> str:
    said = answer if isinstance(answer, dict) else {}
    return str(said.get("error") or said.get("message") or "")[:500]
