"""What our gunicorn servers share: a worker that refuses in JSON what never reaches the application, and a logger."""

from __future__ import annotations

import json
import logging
import time
from typing import Any

from gunicorn.glogging import Logger
from gunicorn.workers.gthread import ThreadWorker

# A refused upload is taken in and thrown away, so that its sender reads the refusal: one whose connection is
# closed under its hands sees an error instead, and nginx makes a 502 of it.
DRAIN_S = 5.0
DRAIN_BYTES = 17 * 1024**2


class StructuredLogger(Logger):  # type: ignore[misc] # gunicorn has no types
    """gunicorn's log records go the way of all others."""

    def setup(self, cfg: Any) -> None:
        """No handlers of its own."""
        self.error_log.propagate = True
        self.error_log.setLevel(logging.WARNING)
        self.access_log.propagate = False


class Worker(ThreadWorker):  # type: ignore[misc] # gunicorn has no types
    """gunicorn's threaded worker with the VMM's error body for broken requests."""

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Lets gunicorn choose status and words, and sends them as JSON."""
        page = _Page()
        super().handle_error(req, page, addr, exc)
        status, text = page.refusal()
        body = json.dumps(self.refusal(text)).encode()
        head = (
            f"HTTP/1.1 {status}\r\nConnection: close\r\nContent-Type: application/json\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        )
        try:
            client.sendall(head.encode("latin-1") + body)
        except OSError:
            self.log.debug("the client left before its error was sent")

    def _keepalive_after(self, conn: Any, keepalive: bool) -> bool:
        """gunicorn's own step after an answer, which gives up after 64 KiB and drains only to keep alive."""
        deadline = time.monotonic() + DRAIN_S
        drained = conn.parser.finish_body(deadline=deadline, max_bytes=DRAIN_BYTES)
        return bool(drained) and keepalive

    def refusal(self, text: str) -> dict[str, str]:
        """The body's fields."""
        return {"message": text, "error": text}


class _Page:
    """Stands in for the client's socket and keeps the HTML page that gunicorn writes."""

    def __init__(self) -> None:
        self.written = b""

    def sendall(self, data: bytes) -> None:
        self.written += data

    def gettimeout(self) -> None:
        return None

    def setblocking(self, flag: bool) -> None:
        pass

    settimeout = setblocking

    def refusal(self) -> tuple[str, str]:
        """Status code with reason, and the text to show."""
        line = self.written.split(b"\r\n", 1)[0].decode("latin-1")
        status = line.partition(" ")[2] or "400 Bad Request"
        return status, f"the request could not be read: {status.partition(' ')[2]}"
