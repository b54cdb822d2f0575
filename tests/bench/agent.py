"""P6, P7, P8 and P18: the guest agent's calls over its Unix socket, and what it costs when nobody calls."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from core import certs, k256
from core.certs import Leaf
from core.kdf import kdf, p256_key, pkcs8_pem
from guest import listeners
from tests.bench.context import Bench, per_second, seconds
from tests.bench.report import Line, Promise
from tests.common.waiting import until

CONNECTIONS = 8
ROUND_S = 1.0
P99_MS = 25.0
_NEEDS = "import flask, gunicorn.app.base, marshmallow, coincurve, cryptography.x509"


@dataclass(frozen=True)
class Call:
    """One method with the request that is sent, and the least work that must be done for it."""

    key: str
    method: str
    fields: Mapping[str, object]
    share: float
    core: Callable[[], object] | None = None
    name: str = ""

    @property
    def title(self) -> str:
        """The line's name."""
        return self.name or self.method


def speed(bench: Bench) -> Iterator[Line]:
    """Each call and Flask hello in turn, `rounds` times, after a second to warm up."""
    agent, hello = Agent(bench.scratch / "agent"), Hello(bench.scratch / "hello.sock")
    # A log of its own: what EmitEvent leaves there would be part of every quote.
    logging = Agent(bench.scratch / "events")
    try:
        for server in (agent, logging, hello):
            server.start()
        calls = _calls(agent)
        loads = {"hello": Load(hello.socket, b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")}
        for call in calls:
            to = logging if call.method == "EmitEvent" else agent
            loads[call.title] = Load(to.socket, _request(call))
        for load in loads.values():
            load.run(ROUND_S)
            load.times_ms.clear()
        rates: dict[str, list[float]] = {name: [] for name in loads}
        cores: dict[str, list[float]] = {call.title: [] for call in calls if call.core}
        for number in range(bench.rounds):
            for call in calls:
                if call.core:
                    cores[call.title].append(per_second(call.core))
            for name, load in loads.items():
                rates[name].append(load.run(ROUND_S))
            bench.say(
                f"round {number + 1}: "
                + ", ".join(f"{name} {taken[-1]:,.0f}" for name, taken in rates.items())
                + " per s"
            )
    finally:
        for server in (agent, logging, hello):
            server.end()
    for call in calls:
        yield _throughput(call, rates, cores)
        if call.key == "P6":
            yield Line(
                key="P6",
                name=f"{call.title}, slowest of 100",
                unit="ms",
                samples=[_p99(loads[call.title].times_ms)],
                promise=Promise(plus=P99_MS),
                peer="Flask hello, same socket",
                peer_samples=[_p99(loads["hello"].times_ms)],
            )


def _throughput(
    call: Call, rates: Mapping[str, list[float]], cores: Mapping[str, list[float]]
) -> Line:
    hello, core = rates["hello"], cores.get(call.title)
    is_core_lower = core is not None and statistics.median(core) < statistics.median(hello)
    return Line(
        key=call.key,
        name=call.title,
        unit="calls/s",
        samples=rates[call.title],
        promise=Promise(factor=call.share, at_least=True),
        peer="its cryptography alone" if is_core_lower else "Flask hello, same socket",
        peer_samples=core if core is not None and is_core_lower else hello,
    )


def _calls(agent: Agent) -> list[Call]:
    secret = os.urandom(32)
    own = ed25519.Ed25519PrivateKey.from_private_bytes(secret)
    public = own.public_key().public_bytes_raw()
    signature = own.sign(b"data")
    names = {"subject": "example.com", "alt_names": ["a.example.com"], "usage_server_auth": True}
    issuer = certs.Issuer(p256_key(secret), x509.load_pem_x509_certificate(agent.root_ca()))
    leaf = Leaf("example.com", ["a.example.com"], server_auth=True)

    def get_key() -> None:
        key = kdf(secret, b"path")
        k256.sign_recoverable(secret, b"purpose:" + k256.public_key(key).hex().encode())

    def sign() -> None:
        key = ed25519.Ed25519PrivateKey.from_private_bytes(kdf(secret, b"vms"))
        k256.sign_recoverable(secret, b"signing:" + key.public_key().public_bytes_raw())
        key.sign(b"data")

    def verify() -> None:
        ed25519.Ed25519PublicKey.from_public_bytes(public).verify(signature, b"data")

    def tls_key() -> None:
        key = ec.generate_private_key(ec.SECP256R1())
        pkcs8_pem(key)
        issuer.issue(key.public_key(), leaf)

    question = {"data": b"data".hex(), "signature": signature.hex(), "public_key": public.hex()}
    return [
        Call("P6", "GetKey", {"path": "path", "purpose": "purpose"}, 0.5, get_key),
        Call("P6", "Sign", {"algorithm": "ed25519", "data": b"data".hex()}, 0.5, sign),
        Call("P6", "Verify", {"algorithm": "ed25519", **question}, 0.5, verify),
        Call("P6", "EmitEvent", {"event": "bench", "payload": "00" * 32}, 0.5),
        Call("P7", "GetTlsKey", names, 0.4, tls_key),
        Call(
            *("P7", "GetTlsKey", {**names, "usage_ra_tls": True}, 0.25, tls_key),
            name="GetTlsKey with a quote",
        ),
        Call("P8", "GetQuote", {"report_data": "ab" * 64}, 0.5),
    ]


def _request(call: Call) -> bytes:
    body = json.dumps(call.fields).encode()
    head = f"POST /{call.method} HTTP/1.1\r\nHost: dstack\r\nContent-Length: {len(body)}\r\n\r\n"
    return head.encode() + body


def _p99(times: list[float]) -> float:
    return sorted(times)[int(len(times) * 0.99)]


@dataclass
class Load:
    """One request again and again on 8 kept connections of a Unix socket, by one thread.

    `wrk` speaks no Unix sockets; this client costs a tenth of what the least server does.
    """

    path: Path
    request: bytes
    times_ms: list[float] = field(default_factory=list)

    def run(self, duration_s: float) -> float:
        """Answers a second; fails when one is not 200."""
        end = time.perf_counter() + duration_s
        with selectors.DefaultSelector() as selector:
            open_ = [_Connection(self.path) for _ in range(CONNECTIONS)]
            for each in open_:
                selector.register(each.socket, selectors.EVENT_READ, each)
                each.ask(self.request)
            began, done = time.perf_counter(), 0
            while (now := time.perf_counter()) < end:
                for key, _ in selector.select(5):
                    if key.data.has_whole_answer():
                        now = time.perf_counter()
                        self.times_ms.append((now - key.data.asked) * 1000)
                        done += 1
                        key.data.ask(self.request)
            for each in open_:
                each.socket.close()
        return done / (now - began)


class _Connection:
    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.connect(str(path))
        self.asked = 0.0
        self._received = b""

    def ask(self, request: bytes) -> None:
        self.asked = time.perf_counter()
        self._received = b""
        self.socket.sendall(request)

    def has_whole_answer(self) -> bool:
        part = self.socket.recv(1024 * 1024)
        assert part, "the server hung up"
        self._received += part
        head, end, body = self._received.partition(b"\r\n\r\n")
        if not end:
            return False
        assert head.startswith(b"HTTP/1.1 200 "), self._received[:500]
        length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
        return len(body) >= int(length)


class _Server:
    """A process that listens on a Unix socket."""

    def __init__(self, path: Path, argv: list[str]) -> None:
        self.socket = path
        self._argv = argv
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Seconds until it accepts and answers."""
        began = time.perf_counter()
        self.process = subprocess.Popen(
            self._argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        until(self._answers, seconds=30, what=f"the start of {self._argv[0]}")
        return time.perf_counter() - began

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None
        with socket.socket(socket.AF_UNIX) as client:
            try:
                client.connect(str(self.socket))
            except OSError:
                return False
            client.settimeout(30)
            client.sendall(b"GET /Version HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
            return client.recv(12).startswith(b"HTTP/1.1 ")

    def end(self) -> None:
        """Ends it; nothing when it was never started."""
        if self.process is not None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(15)
            self.process = None


class Agent(_Server):
    """The agent as a simulator."""

    def __init__(self, folder: Path) -> None:
        casemate = os.fspath(Path(sys.executable).parent / "casemate")
        self.folder = folder
        super().__init__(
            folder / "dstack.sock", [casemate, "agent", "--simulate", "--dir", os.fspath(folder)]
        )

    def root_ca(self) -> bytes:
        """The root certificate of its app keys."""
        keys = json.loads((self.folder / "appkeys.json").read_text())
        return keys["ca_cert"].encode()


class Hello(_Server):
    """Flask hello on a gunicorn with the agent's settings."""

    def __init__(self, path: Path) -> None:
        threads, backlog = str(listeners.THREADS), str(listeners.BACKLOG)
        super().__init__(
            path,
            [sys.executable, "-m", "gunicorn", "--worker-class", "gthread", "--workers", "1"]
            + ["--threads", threads, "--backlog", backlog, "--keep-alive", "5"]
            + ["--log-level", "warning", "--bind", f"unix:{path}", "tests.bench.hello:application"],
        )


def idle(bench: Bench) -> Iterator[Line]:
    """How soon the agent answers and what it holds, as a simulator on this machine."""
    agent = Agent(bench.scratch / "idle-agent")
    starts, bare, memory = [], [], []
    try:
        for _ in range(bench.rounds + 1):
            bare.append(seconds(lambda: subprocess.run([sys.executable, "-c", _NEEDS], check=True)))
            starts.append(agent.start())
            assert agent.process is not None
            master = psutil.Process(agent.process.pid)
            memory.append(
                sum(each.memory_full_info().pss for each in (master, *master.children())) / 1e6
            )
            agent.end()
    finally:
        agent.end()
    yield Line(
        key="P18",
        name="casemate agent, until it answers",
        unit="s",
        samples=starts[1:],  # the first one makes keys and fills the disk cache
        promise=Promise(plus=1.5),
        peer=f"python -c '{_NEEDS}'",
        peer_samples=bare[1:],
    )
    yield Line(
        key="P18",
        name="idle agent, both processes",
        unit="MB",
        samples=memory[1:],
        promise=Promise(plus=60),
    )
