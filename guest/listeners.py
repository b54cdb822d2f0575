"""The agent's process: one gunicorn worker whose threads serve every listener.

Which API a connection gets is decided by the socket it came in on (guest-agent.md section 1).
"""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import socket
import ssl
import struct
import threading
from collections.abc import Callable, Iterable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any

from gunicorn.app.base import BaseApplication
from gunicorn.http.errors import ParseException
from gunicorn.workers.gthread import ThreadWorker

from guest import channel, host_calls, vsock
from guest.service import Agent
from guest.settings import GUEST_SOCKET, Settings

if TYPE_CHECKING:
    from guest.public import Tls

logger = logging.getLogger(__name__)

DSTACK_SOCKET = "dstack.sock"
TAPPD_SOCKET = "tappd.sock"

THREADS = 32
# Callers from the network share half of the threads; the app's own calls always find one.
PUBLIC_THREADS = THREADS // 2
BACKLOG = 128
# A peer that stops in the middle of a request or of reading an answer gives its thread back.
STALLED_PEER_S = 10
_MAX_LINE = 8190


class Worker(ThreadWorker):  # type: ignore[misc] # gunicorn has no types
    """gunicorn's thread worker, speaking JSON about requests that it refuses itself."""

    def init_process(self) -> None:
        self._public = threading.BoundedSemaphore(PUBLIC_THREADS)
        super().init_process()

    def load_wsgi(self) -> None:
        super().load_wsgi()
        # What was read in stays for ever: looking for garbage among it would cost a tenth of each call.
        gc.freeze()

    def handle(self, conn: Any) -> Any:
        if not conn.initialized:
            limit = struct.pack("ll", STALLED_PEER_S, 0)
            for option in (socket.SO_RCVTIMEO, socket.SO_SNDTIMEO):
                conn.sock.setsockopt(socket.SOL_SOCKET, option, limit)
        if conn.sock.family == socket.AF_UNIX:
            return super().handle(conn)
        if not self._public.acquire(blocking=False):
            self._refuse(conn.sock, 503, "too many calls at once")
            with contextlib.suppress(OSError):
                conn.sock.shutdown(socket.SHUT_RDWR)
            return super().handle(conn)
        try:
            return super().handle(conn)
        finally:
            self._public.release()

    def handle_error(
        self, req: object, client: socket.socket, addr: object, exc: Exception
    ) -> None:
        # Broken chunks are OSErrors of gunicorn's own, named Chunk... or ...ChunkSize.
        if isinstance(exc, ParseException) or "Chunk" in type(exc).__name__:
            self._refuse(client, 400, str(exc))
        else:
            logger.error("fault in the server", exc_info=exc)
            self._refuse(client, 500, "internal error")

    def _refuse(self, client: socket.socket, status: int, text: str) -> None:
        if self.cfg.is_ssl and not isinstance(client, ssl.SSLSocket):
            return  # it would take this for a broken handshake
        body = json.dumps({"error": text}).encode()
        lines = [
            f"HTTP/1.1 {status} {HTTPStatus(status).phrase}",
            "Connection: close",
            "Content-Type: application/json",
            f"Content-Length: {len(body)}",
        ]
        if client.family != socket.AF_UNIX:
            lines.append(f"X-App-Version: {self.app.agent.release()}")
        head = "".join(f"{line}\r\n" for line in lines)
        with contextlib.suppress(OSError):
            client.sendall(head.encode() + b"\r\n" + body)


class PatientSocket(ssl.SSLSocket):
    """A TLS connection whose peer may stop for so long and no longer.

    The kernel's time-outs are of no use here: OpenSSL takes them for a wish to try again.
    """

    def settimeout(self, value: float | None) -> None:
        """Sets a time-out; "for ever" is STALLED_PEER_S."""
        super().settimeout(STALLED_PEER_S if value is None else value)

    def setblocking(self, flag: bool) -> None:
        """Waits at most STALLED_PEER_S, or not at all."""
        self.settimeout(None if flag else 0.0)


class Server(BaseApplication):  # type: ignore[misc] # gunicorn has no types
    """The gunicorn master of the agent; `binds` is empty when the sockets were handed to us.

    With `pages` it serves these over TLS and nothing else.
    """

    def __init__(
        self,
        agent: Agent,
        binds: Sequence[str],
        on_start: Callable[[], None],
        pages: Tls | None = None,
    ) -> None:
        self.agent = agent
        self._binds = list(binds)
        self._on_start = on_start
        self._pages = pages
        super().__init__()

    def load_config(self) -> None:
        settings = {
            "worker_class": Worker,
            "workers": 1,
            "threads": THREADS,
            "backlog": BACKLOG,
            # A simulator on a busy machine or a guest under emulation may be slow to say it is alive.
            "timeout": 120,
            "graceful_timeout": 2,
            "keepalive": 5,
            "limit_request_line": _MAX_LINE,
            "loglevel": "warning",
            "control_socket_disable": True,
            # Before the worker reads in Flask, which takes seconds under emulation: the host is answered first.
            "post_fork": lambda server, worker: self._on_start(),
        }
        if self._binds:
            settings["bind"] = self._binds
        if self._pages:
            settings["certfile"] = str(self._pages.certificate)
            settings["keyfile"] = str(self._pages.key)
            settings["ssl_context"] = _patient
        for name, value in settings.items():
            # Older releases have no control socket to disable.
            if name in self.cfg.settings:
                self.cfg.set(name, value)

    def load(self) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
        if self._pages is None:
            return front(self.agent)
        from guest import public, public_routes

        return public_routes.create_app(public.Pages(self.agent, self._pages.spki))


def _patient(config: object, default: Callable[[], ssl.SSLContext]) -> ssl.SSLContext:
    context = default()
    context.sslsocket_class = PatientSocket
    return context


def front(agent: Agent) -> Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]:
    """The WSGI application that gives each request to the API of its listener."""
    from guest import guest_routes, http_routes, legacy_routes, routes

    by_socket = {
        DSTACK_SOCKET: routes.create_app(agent),
        TAPPD_SOCKET: legacy_routes.create_app(agent),
        GUEST_SOCKET: guest_routes.create_app(agent),
    }
    public = http_routes.create_app(agent)

    def application(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        name = environ["gunicorn.socket"].getsockname()
        app = by_socket[name.rpartition("/")[2]] if isinstance(name, str) else public
        return app(environ, start_response)

    return application


def run(
    agent: Agent, binds: Sequence[str] = (), on_start: Callable[[], None] | None = None
) -> None:
    """Serves until told to end; without `binds` on the sockets that LISTEN_FDS names (PID 1 made them)."""
    Server(agent, binds, on_start or (lambda: None)).run()


def serve_guest(settings: Settings, power_off: Callable[[], None]) -> None:
    """The agent of a real guest: sockets from PID 1, the host on the serial port or over vsock."""
    agent = Agent(settings, power_off)

    def start() -> None:
        agent.watch_boot()
        device = channel.find_port(channel.GUEST_PORT, settings.root)
        if device is not None:
            host_calls.serve_in_background(agent, device)
        elif vsock.is_there(settings.root):
            vsock.relay_in_background(settings.state / GUEST_SOCKET)

    run(agent, (), start)


def serve_pages(settings: Settings) -> None:
    """The pages of port 29343, on the socket that PID 1 made."""
    from guest import public

    agent = Agent(settings, lambda: None)
    Server(agent, (), lambda: None, public.tls(settings)).run()
