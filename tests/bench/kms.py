"""P14: how many apps a second get their keys over mutual TLS, beside Flask hello behind the same TLS.

Each request is a whole release: the evidence in the client's certificate is judged (verified by each worker once a
second, as in a service that is asked again and again), the policy file asked twice (for the KMS itself, for the app),
and the audit record synced before the answer leaves.
"""

from __future__ import annotations

import json
import os
import socket
import ssl
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import cycle, repeat
from pathlib import Path

import urllib3
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from attest import ratls
from core import certs, proc
from core.kms_client import Kms, client_certificate
from kms.judge import MAX_KEPT
from tests.bench.context import Bench
from tests.bench.http import CONNECTIONS, LOTS, ROUND_S
from tests.bench.report import Line, Promise
from tests.common import evidence
from tests.common.evidence import APP_ID, COMPOSE_HASH, TdxVm
from tests.common.kms import ROOT, RunningKms
from tests.common.waiting import free_port, until

KEPT, NEW = "kept-alive", "new connection each time"
STRANGERS = "new connection and another caller each time"
# More than a KMS keeps the evidence of, so that each is a stranger when his turn comes.
CALLERS = 4 * MAX_KEPT
KMS, HELLO = "GetAppKey", "Flask hello"


def measure(bench: Bench) -> Iterator[Line]:
    """Two seconds of each in turn, `rounds` times, after a second to warm up."""
    urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    kms = _kms(bench.scratch / "kms")
    hello = Hello(kms.config)
    try:
        kms.start()
        client, *others = (_client(kms) for _ in range(CALLERS))
        hello.start(client)
        loads = {
            (name, how): Load(port, _request(name, how), repeat(client), is_kept=how == KEPT)
            for name, port in ((HELLO, hello.port), (KMS, kms.port))
            for how in (KEPT, NEW)
        }
        loads[KMS, STRANGERS] = Load(
            kms.port, _request(KMS, STRANGERS), cycle((client, *others)), is_kept=False
        )
        for each in loads.values():
            each.run(ROUND_S)
        rates: dict[tuple[str, str], list[float]] = {what: [] for what in loads}
        for number in range(bench.rounds):
            for what, each in loads.items():
                rates[what].append(statistics.mean(each.run(ROUND_S) for _ in range(LOTS)))
            told = (f"{name} {how} {taken[-1]:,.0f}" for (name, how), taken in rates.items())
            bench.say(f"round {number + 1}: {', '.join(told)} per s")
    finally:
        hello.end()
        kms.stop()
    for how in (KEPT, NEW):
        yield Line(
            key="P14",
            name=f"{KMS} over mutual TLS, {how}",
            unit="req/s",
            samples=rates[KMS, how],
            promise=Promise(factor=0.4, at_least=True),
            peer=f"{HELLO}, same TLS",
            peer_samples=rates[HELLO, how],
        )
    yield Line("P14", f"{KMS} over mutual TLS, {STRANGERS}", "req/s", rates[KMS, STRANGERS])


def _kms(folder: Path) -> RunningKms:
    """A KMS, not started, that believes the simulated platform and whose policy allows the app and itself."""
    kms = RunningKms(folder, check_image=True)
    folder.mkdir()
    (folder / "tee-root-ca.pem").write_text(evidence.platform().root_ca_pem)
    (folder / "tee-collateral.json").write_text(evidence.collateral(int(time.time())))
    kms.write_config()
    own = kms.own_measurements()
    kms.policy("allow", "--kms-mr", own["mrAggregated"], "--device", own["deviceId"])
    for image in (own["osImageHash"], json.loads(evidence.vm_config())["os_image_hash"]):
        kms.policy("allow", "--os-image", image)
    app = ("--app", APP_ID.hex(), "--compose", COMPOSE_HASH.hex())
    kms.policy("allow", *app, "--any-device")
    return kms


def _client(kms: RunningKms) -> ssl.SSLContext:
    """The TLS of an app: it trusts the KMS's root and shows its evidence in its certificate."""
    met = Kms(kms.url).introduction()
    chain, key = client_certificate(met, _attested)
    file = kms.folder / "client.pem"
    file.touch(mode=0o600)
    file.write_text(chain + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False  # a KMS is known by its root alone
    context.load_verify_locations(cadata=met.ca_cert)
    context.load_cert_chain(file)
    return context


def _attested(key: ec.EllipticCurvePublicKey) -> x509.UnrecognizedExtension:
    bound = ratls.report_data_for_key(certs.spki_der(key))
    return ratls.attestation_extension(TdxVm(report_data=bound).attestation())


def _request(name: str, how: str) -> bytes:
    body = json.dumps({"api_version": 1}) if name == KMS else ""
    head = "POST /prpc/GetAppKey?json HTTP/1.1" if name == KMS else "GET / HTTP/1.1"
    headers = [
        "Host: kms.example",
        "Content-Type: application/json",
        f"Content-Length: {len(body)}",
    ]
    if how != KEPT:
        headers.append("Connection: close")
    return "\r\n".join((head, *headers, "", body)).encode()


class Hello:
    """Flask hello as tests/bench/tls_hello.py serves it."""

    def __init__(self, config: Path) -> None:
        self.port = free_port()
        self._config = config
        self._process: subprocess.Popen[bytes] | None = None

    def start(self, client: ssl.SSLContext) -> None:
        """Starts it and waits until it answers."""
        bind = f"127.0.0.1:{self.port}"
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.bench.tls_hello", os.fspath(self._config), bind],
            cwd=ROOT,
            stdin=subprocess.DEVNULL,
        )
        probe = Load(self.port, _request(HELLO, NEW), repeat(client), is_kept=False)
        until(lambda: self._answers(probe), seconds=30, what="the start of the TLS hello")

    def _answers(self, probe: Load) -> bool:
        assert self._process is not None and self._process.poll() is None
        try:
            probe.ask_once()
        except ConnectionRefusedError:
            return False
        return True

    def end(self) -> None:
        """Ends it; nothing when it was never started."""
        if self._process is not None:
            proc.stop(self._process, patience_s=15)
            self._process = None


@dataclass(frozen=True)
class Load:
    """One request again and again from 8 threads, on a connection each or on a new one each time.

    `wrk` shows no client certificates; sessions are not resumed, so every connection is a whole handshake.
    """

    port: int
    request: bytes = field(repr=False)
    clients: Iterator[ssl.SSLContext]
    is_kept: bool

    def run(self, duration_s: float) -> float:
        """Answers a second; fails when one is not 200."""
        began = time.perf_counter()
        with ThreadPoolExecutor(CONNECTIONS) as pool:
            ends = [began + duration_s] * CONNECTIONS
            done = sum(pool.map(self._ask_until, ends))
        return done / (time.perf_counter() - began)

    def ask_once(self) -> None:
        """One request on a connection of its own."""
        with self._connected() as connection:
            self._ask(connection)

    def _ask_until(self, end: float) -> int:
        done = 0
        if not self.is_kept:
            while time.perf_counter() < end:
                self.ask_once()
                done += 1
            return done
        with self._connected() as connection:
            while time.perf_counter() < end:
                self._ask(connection)
                done += 1
        return done

    def _connected(self) -> ssl.SSLSocket:
        plain = socket.create_connection(("127.0.0.1", self.port), timeout=30)
        # As every HTTP library does: else the request waits for an acknowledgement of the handshake.
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return next(self.clients).wrap_socket(plain)

    def _ask(self, connection: ssl.SSLSocket) -> None:
        connection.sendall(self.request)
        received = b""
        while not _is_whole(received):
            part = connection.recv(65536)
            assert part, "the server hung up"
            received += part
        assert received.startswith(b"HTTP/1.1 200 "), received[:500]


def _is_whole(answer: bytes) -> bool:
    head, end, body = answer.partition(b"\r\n\r\n")
    length = head.lower().partition(b"content-length: ")[2].partition(b"\r\n")[0]
    return bool(end) and len(body) >= int(length)
