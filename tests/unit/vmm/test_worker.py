from __future__ import annotations

import json
import logging
import socket
import time
from typing import Any

import pytest
from gunicorn.http.errors import InvalidRequestLine, LimitRequestHeaders
from gunicorn.workers.gthread import ThreadWorker

from vmm.worker import DRAIN_BYTES, DRAIN_S, Worker, _Page


def worker() -> Worker:
    made: Worker = Worker.__new__(Worker)
    made.log = logging.getLogger("test")
    return made


@pytest.mark.parametrize(
    ("status", "text"),
    [
        ("400 Bad Request", "the request could not be read: Bad Request"),
        ("414 URI Too Long", "the request could not be read: URI Too Long"),
        ("", "the request could not be read: Bad Request"),
    ],
)
def test_gunicorns_page_becomes_the_body_of_the_surface(
    monkeypatch: pytest.MonkeyPatch, status: str, text: str
) -> None:
    def refuse(self: object, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        if status:
            client.setblocking(True)
            client.settimeout(client.gettimeout())
            client.sendall(f"HTTP/1.1 {status}\r\nX: y\r\n\r\n<html>".encode())

    monkeypatch.setattr(ThreadWorker, "handle_error", refuse)
    ours, theirs = socket.socketpair()
    with ours, theirs:
        worker().handle_error(None, ours, None, InvalidRequestLine("x"))
        head, _, body = theirs.recv(65536).partition(b"\r\n\r\n")

    assert head.startswith(f"HTTP/1.1 {status or '400 Bad Request'}\r\n".encode())
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body) == {"message": text, "error": text}


def test_a_client_that_left_is_no_fault(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ThreadWorker, "handle_error", lambda *_: None)
    ours, theirs = socket.socketpair()
    theirs.close()
    with ours:
        worker().handle_error(None, ours, None, LimitRequestHeaders("x"))


def test_a_page_that_was_never_written_is_a_bad_request() -> None:
    assert _Page().refusal() == ("400 Bad Request", "the request could not be read: Bad Request")


@pytest.mark.parametrize("keepalive", [True, False])
def test_what_is_left_of_a_body_is_taken_in_before_the_connection_closes(keepalive: bool) -> None:
    asked: list[tuple[bool, int]] = []

    class Connection:
        class parser:
            @staticmethod
            def finish_body(deadline: float, max_bytes: int) -> bool:
                asked.append((0 < deadline - time.monotonic() <= DRAIN_S, max_bytes))
                return True

    assert worker()._keepalive_after(Connection(), keepalive) is keepalive
    assert asked == [(True, DRAIN_BYTES)]
