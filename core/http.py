"""Outbound HTTP: one JSON call to a service that may be slow, large, or not there.

The standard library's client and no other: it follows no redirect and takes no proxy from the environment.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import ssl
import threading
import time
from typing import Any
from urllib.parse import urlsplit

from core.config import is_web_address
from core.errors import CasemateError, Invalid, Upstream, UpstreamTimeout
from core.prpc import read_json

ANSWER_LIMIT = 1024**2


def post_json(
    url: str, message: dict[str, Any], *, within_s: float, check_certificate: bool = True
) -> dict[str, Any]:
    """Posts a JSON object and returns the one that comes back, all within `within_s` seconds.

    Raises UpstreamTimeout when time is over, however the peer spends it; Upstream when it cannot be
    reached, refuses (the text has its reason) or answers with something else than a JSON object.
    """
    parts = urlsplit(url)
    if not is_web_address(url):
        raise Invalid(f"{url} is not an http(s) address with a host")
    deadline = time.monotonic() + within_s
    try:
        status, body = _exchange(url, json.dumps(message).encode(), deadline, check_certificate)
    except (OSError, http.client.HTTPException) as error:
        if time.monotonic() >= deadline or isinstance(error, TimeoutError):
            raise UpstreamTimeout(f"{parts.netloc} did not answer within {within_s:g} s") from None
        why = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise Upstream(f"{parts.netloc} cannot be reached: {why}") from None
    try:
        answer = read_json(body)
    except CasemateError:
        answer = None
    if status != 200:
        raise Upstream(f"{parts.netloc} refused: {_reason(answer) or f'status {status}'}")
    if not isinstance(answer, dict):
        raise Upstream(f"{parts.netloc} did not answer with a JSON object")
    return answer


def _exchange(url: str, body: bytes, deadline: float, check: bool) -> tuple[int, bytes]:
    parts = urlsplit(url)
    assert parts.hostname is not None
    secure = parts.scheme == "https"
    address = (parts.hostname, parts.port or (443 if secure else 80))
    connection = http.client.HTTPConnection(*address)
    plain = socket.create_connection(address, timeout=max(0.001, deadline - time.monotonic()))
    # A time-out of the socket counts from byte to byte; this one ends a peer that drips them.
    handle = plain.dup()  # TLS takes the other one away
    timer = threading.Timer(deadline - time.monotonic(), _cut, [handle])
    timer.start()
    try:
        context = _context(check) if secure else None
        connection.sock = (
            context.wrap_socket(plain, server_hostname=parts.hostname) if context else plain
        )
        path = parts.path + (f"?{parts.query}" if parts.query else "")
        connection.request("POST", path or "/", body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        content = answer.read(ANSWER_LIMIT + 1)
        if len(content) > ANSWER_LIMIT:
            raise Upstream(f"{parts.netloc} answered with more than {ANSWER_LIMIT} bytes")
        if answer.length:
            raise http.client.IncompleteRead(content, answer.length)
        if time.monotonic() >= deadline:  # cut off, which looks like an end
            raise TimeoutError
        return answer.status, content
    finally:
        timer.cancel()
        for each in (connection, plain, handle):
            each.close()


def _cut(handle: socket.socket) -> None:
    with contextlib.suppress(OSError):  # it has ended meanwhile
        handle.shutdown(socket.SHUT_RDWR)


def _context(check: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    if not check:
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    return context


def _reason(answer: object) -> str:
    said = answer if isinstance(answer, dict) else {}
    return str(said.get("error") or said.get("message") or "")[:500]
