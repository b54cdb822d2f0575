"""Plain HTTP servers to stand behind a cluster's front, and a cluster made of them."""

from __future__ import annotations

import http.client
import threading
import time
import uuid
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from models.account import MAIN_ID
from models.base import Database
from models.cluster import Cluster, ClusterNode
from models.port import PortLease
from secretvm.front import Strategy, Traffic
from tests.common import rows
from tests.common.waiting import free_port

APP_PORT, HEALTH_PORT = 8000, 29343


class Server(ThreadingHTTPServer):
    """Takes bursts of connections without making them wait."""

    request_queue_size = 256
    daemon_threads = True

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Nothing: HAProxy ends the connections of its checks by a reset."""


class Handler(BaseHTTPRequestHandler):
    """Says which backend it is; /cpu is its health."""

    protocol_version = "HTTP/1.1"
    backend: Backend

    def do_GET(self) -> None:
        """One request; /status/N is answered with that status."""
        length = int(self.headers.get("Content-Length") or 0)
        self.rfile.read(length)
        if self.path == "/cpu":
            self.say(200 if self.backend.is_well else 503, b"quote")
            return
        with self.backend.guard:
            self.backend.seen.append(self.path)
            self.backend.inside += 1
            self.backend.most = max(self.backend.most, self.backend.inside)
        time.sleep(self.backend.delay_s)
        with self.backend.guard:
            self.backend.inside -= 1
        status = int(self.path.rpartition("/")[2]) if self.path.startswith("/status/") else 200
        self.say(status, self.backend.name.encode())

    do_POST = do_GET

    def say(self, status: int, body: bytes) -> None:
        """One answer."""
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nothing: tests print what matters."""


@dataclass
class Backend:
    """A plain HTTP server on a port of its own, the same one at every start; `most` were served at once."""

    name: str
    delay_s: float = 0.0
    is_well: bool = True
    port: int = field(default_factory=free_port)
    seen: list[str] = field(default_factory=list)
    inside: int = 0
    most: int = 0
    guard: Any = field(default_factory=threading.Lock)
    server: Server | None = None

    def start(self) -> Backend:
        """Listens and answers in threads."""
        handler = type("Bound", (Handler,), {"backend": self})
        self.server = Server(("127.0.0.1", self.port), handler)
        threading.Thread(target=self.server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def stop(self) -> None:
        """Is not there any more."""
        if self.server is not None:
            self.server.shutdown()
            self.server.server_close()
            self.server = None


def add_cluster(
    database: Database,
    backends: Sequence[Backend],
    *,
    weights: Sequence[int] = (),
    **fields: Any,
) -> Cluster:
    """Rows of a cluster whose nodes are VMs with host ports that are those of the backends."""
    values: dict[str, Any] = {
        "project_id": MAIN_ID,
        "name": "shop",
        "vm_type": "small",
        "app_id": "ab" * 20,
        "domain": "",
        "address": "127.0.0.1",
        "port": free_port(),
        "strategy": Strategy.ROUNDROBIN,
        "sticky": False,
        "max_connections": 1000,
        "password_hash": None,
        "backend_scheme": "http",
        "backend_port": APP_PORT,
        "health_scheme": "http",
        "health_path": "/cpu",
        "health_port": HEALTH_PORT,
        "health_interval_s": 1,
        "health_timeout_s": 2,
        "error": "",
        "created_ms": 1_700_000_000_000,
        "updated_ms": 1_700_000_000_000,
    }
    cluster = Cluster(**({"id": str(uuid.uuid4())} | values | fields))
    with database.writing() as session:
        session.add(cluster)
        for index, backend in enumerate(backends):
            vm = rows.vm(name=backend.name)
            vm.ports = [_lease(backend.port, guest) for guest in (APP_PORT, HEALTH_PORT)]
            session.add(vm)
            session.flush()
            weight = weights[index] if weights else 1
            cluster.nodes.append(
                ClusterNode(
                    slot=index + 1,
                    name=backend.name,
                    weight=weight,
                    vm_id=vm.id,
                    plan_id=1,
                    traffic=Traffic.OPEN,
                )
            )
    return cluster


def _lease(host_port: int, vm_port: int) -> PortLease:
    # Both ports lead to one backend: the lease that checks ask has an address that means the same.
    address = "127.0.0.1" if vm_port == APP_PORT else "0.0.0.0"
    return PortLease(
        position=vm_port, protocol="tcp", host_address=address, host_port=host_port, vm_port=vm_port
    )


@dataclass
class Client:
    """Asks a front and remembers who answered, how, and what failed."""

    port: int
    names: Counter[str] = field(default_factory=Counter)
    statuses: Counter[int] = field(default_factory=Counter)
    failed: list[str] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    source: str = "127.0.0.1"

    def ask(self, path: str = "/", method: str = "GET", body: bytes | None = None) -> str:
        """One request over a connection of its own; who answered."""
        connection = http.client.HTTPConnection(
            "127.0.0.1", self.port, timeout=30, source_address=(self.source, 0)
        )
        try:
            connection.request(method, path, body, self.headers)
            answer = connection.getresponse()
            name = answer.read().decode(errors="replace")
        except (OSError, http.client.HTTPException) as error:
            self.failed.append(f"{type(error).__name__}: {error}")
            return ""
        finally:
            connection.close()
        self.names[name] += 1
        self.statuses[answer.status] += 1
        if given := answer.getheader("Set-Cookie"):
            self.headers["Cookie"] = given.partition(";")[0]
        return name

    def ask_often(self, times: int) -> Client:
        """Requests one after the other."""
        for _ in range(times):
            self.ask()
        return self

    def ask_at_once(self, times: int, at_once: int) -> Client:
        """Requests from several threads, each a part of them."""
        threads = [
            threading.Thread(target=self.ask_often, args=(times // at_once,))
            for _ in range(at_once)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return self
