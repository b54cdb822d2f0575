"""A TLS server on loopback whose pages a test gives, and which counts who came."""

from __future__ import annotations

import http.server
import ssl
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Self

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding

from core import certs
from core.certs import Issuer, Leaf
from core.kdf import pkcs8_pem


class TlsServer:
    """Serves `pages` (path -> body, or status and body) with a self-made certificate for `names`."""

    def __init__(
        self,
        folder: Path,
        pages: Mapping[str, bytes | tuple[int, bytes]],
        names: tuple[str, ...] = ("127.0.0.1", "vm.test"),
    ) -> None:
        self.pages = dict(pages)
        self.connections = 0
        self.asked: list[str] = []
        key = ec.generate_private_key(ec.SECP256R1())
        authority = x509.load_pem_x509_certificate(
            certs.authority(key, certs.name("own"), path_length=0).encode()
        )
        pem = Issuer(key, authority).issue(
            key.public_key(), Leaf("own", alt_names=names, server_auth=True)
        )
        self.spki = certs.spki_der(key.public_key())
        self.pem = pem
        self.der = x509.load_pem_x509_certificate(pem.encode()).public_bytes(Encoding.DER)
        (folder / "server.pem").write_text(pkcs8_pem(key) + pem)
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(folder / "server.pem")
        self._server = _Server(self, context)
        self.port: int = self._server.server_address[1]
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(0.01,), daemon=True
        )
        self._thread.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


class _Server(http.server.ThreadingHTTPServer):
    def __init__(self, owner: TlsServer, context: ssl.SSLContext) -> None:
        self.owner = owner
        self._context = context
        super().__init__(("127.0.0.1", 0), _Handler)

    def get_request(self) -> tuple[Any, Any]:
        made, address = super().get_request()
        self.owner.connections += 1
        return self._context.wrap_socket(
            made, server_side=True, do_handshake_on_connect=False
        ), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Clients that hang up are what is tested."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        """Answers with a page."""
        owner = self.server.owner
        owner.asked.append(self.path)
        found = owner.pages.get(self.path, (404, b"none"))
        status, body = found if isinstance(found, tuple) else (200, found)
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if status in (301, 302):
            self.send_header("Location", "/elsewhere")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Nobody reads it."""
