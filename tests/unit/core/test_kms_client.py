"""The caller's side of a KMS, against servers that do not behave."""

from __future__ import annotations

import http.server
import json
import ssl
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from core import certs, kms_client
from core.certs import Issuer, Leaf
from core.errors import Invalid, Upstream, UpstreamTimeout
from core.kdf import pkcs8_pem
from core.kms_client import Introduction, Kms


class Answering(http.server.ThreadingHTTPServer):
    """A TLS server that answers every POST in one way."""

    status = 200
    body = b"{}"
    paths: list[str]
    waiting: threading.Event | None = None
    drips = False


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Answering]:
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            mine = self.server
            assert isinstance(mine, Answering)
            mine.paths.append(self.path)
            # What is left unread would end the connection with a reset, and the answer with it.
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            if mine.waiting is not None:
                mine.waiting.wait(10)
            self.send_response(mine.status)
            self.send_header("Content-Length", str(len(mine.body)))
            self.end_headers()
            for byte in mine.body if mine.drips else b"":
                self.wfile.write(bytes([byte]))
                time.sleep(0.02)
            if not mine.drips:
                self.wfile.write(mine.body)

        def log_message(self, *args: object) -> None:
            pass

    key = ec.generate_private_key(ec.SECP256R1())
    root = certs.authority(key, certs.name("root"), path_length=0)
    issuer = Issuer(key, x509.load_pem_x509_certificate(root.encode()))
    leaf = issuer.issue(key.public_key(), Leaf("server"))
    (tmp_path / "server.pem").write_text(leaf + pkcs8_pem(key))
    made = Answering(("127.0.0.1", 0), Handler)
    made.paths = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "server.pem")
    made.socket = context.wrap_socket(made.socket, server_side=True)
    threading.Thread(target=made.serve_forever, args=[0.01], daemon=True).start()
    yield made
    made.shutdown()
    made.server_close()


def url(server: Answering, path: str = "") -> str:
    return f"https://127.0.0.1:{server.server_port}{path}"


@pytest.mark.parametrize("path", ["", "/", "/prpc", "/prpc/"])
def test_an_address_may_end_in_prpc(server: Answering, path: str) -> None:
    Kms(url(server, path)).call("GetMeta", {})

    assert server.paths == ["/prpc/GetMeta?json"]


@pytest.mark.parametrize(
    ("status", "body", "reason"),
    [
        (400, b'{"error": "Boot denied: no"}', "refused: Boot denied: no"),
        (500, b"{}", "refused: 500"),
        (200, b"", "answered 200 with something that is no JSON object"),
        (200, b"[]", "no JSON object"),
        (200, b"[" * 100_000, "no JSON object"),
        (200, b'{"a": "' + b"x" * kms_client.MAX_ANSWER + b'"}', "no JSON object"),
    ],
)
def test_an_answer_that_is_none_is_told(
    server: Answering, status: int, body: bytes, reason: str
) -> None:
    server.status, server.body = status, body

    with pytest.raises(Upstream, match=reason):
        Kms(url(server)).call("GetAppKey", {})


@pytest.mark.parametrize(
    "address", ["http://x", "https://", "x", "", "https://x:99999", "https://["]
)
def test_only_https_addresses_are_asked(address: str) -> None:
    with pytest.raises(Invalid, match="is not an https:// address"):
        Kms(address).call("GetMeta", {})


def test_a_server_that_stays_silent_is_left(
    server: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kms_client, "TIMEOUT_S", 0.2)
    server.waiting = threading.Event()

    with pytest.raises(UpstreamTimeout, match="does not answer"):
        Kms(url(server)).call("GetMeta", {})

    server.waiting.set()


def test_a_server_that_drips_its_answer_is_left_in_time(
    server: Answering, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kms_client, "TIMEOUT_S", 0.5)
    server.body, server.drips = b" " * 1000, True
    began = time.monotonic()

    with pytest.raises(UpstreamTimeout, match="does not answer"):
        Kms(url(server)).call("GetMeta", {})

    assert time.monotonic() - began < 5


def test_the_server_is_looked_at_before_anything_is_asked(server: Answering) -> None:
    seen: list[x509.Certificate] = []

    def refuse(certificate: x509.Certificate) -> None:
        seen.append(certificate)
        raise Upstream("not that one")

    with pytest.raises(Upstream, match="not that one"):
        Kms(url(server), check_server=refuse).call("GetAppKey", {})

    assert seen[0].subject.rfc4514_string() == "CN=server"
    assert server.paths == []


@pytest.mark.parametrize("change", [{"ca_cert": ""}, {"temp_ca_key": 5}, {"temp_ca_cert": None}])
def test_an_introduction_must_be_whole(server: Answering, change: dict[str, object]) -> None:
    whole = {"ca_cert": "a", "temp_ca_cert": "b", "temp_ca_key": "c"}
    server.body = json.dumps(whole).encode()
    assert Kms(url(server)).introduction() == Introduction("a", "b", "c")

    server.body = json.dumps({**whole, **change}).encode()
    with pytest.raises(Upstream, match=f"has no {next(iter(change))}"):
        Kms(url(server)).introduction()


@pytest.mark.parametrize("address", ["https://a b", "https://" + "a" * 300])
def test_a_host_that_cannot_be_is_told(address: str) -> None:
    with pytest.raises(Upstream, match="cannot be asked"):
        Kms(address).call("GetMeta", {})


def test_a_root_that_cannot_be_read_is_told(server: Answering) -> None:
    with pytest.raises(Upstream, match="cannot be asked"):
        Kms(url(server), ca_cert="garbage").call("GetMeta", {})


def attest(public: ec.EllipticCurvePublicKey) -> x509.UnrecognizedExtension:
    """A stand-in for evidence."""
    return x509.UnrecognizedExtension(x509.ObjectIdentifier("1.2.3"), b"\x04\x00")


def authority() -> tuple[str, str]:
    """A CA certificate and its key in PEM."""
    key = ec.generate_private_key(ec.SECP256R1())
    return certs.authority(key, certs.name("temporary"), path_length=0), pkcs8_pem(key)


def test_a_temporary_ca_of_another_kind_is_refused() -> None:
    key = ed25519.Ed25519PrivateKey.generate()
    text = key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()).decode()

    with pytest.raises(Upstream, match="no elliptic curve key"):
        kms_client.client_certificate(Introduction("", authority()[0], text), attest)


def test_a_temporary_ca_that_cannot_be_read_is_refused() -> None:
    certificate, key = authority()

    for met in (Introduction("", "garbage", key), Introduction("", certificate, "garbage")):
        with pytest.raises(Upstream, match="cannot be read"):
            kms_client.client_certificate(met, attest)
