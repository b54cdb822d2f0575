"""The caller's side of a KMS: HTTPS to a server that is known by what its certificate says, not by its name.

Used by guests that ask for keys and by a KMS that joins another one.  Source: kms.md section 6.
"""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import load_pem_private_key

from core.certs import Issuer, Leaf, pem
from core.errors import Invalid, Upstream, UpstreamTimeout
from core.http import connected, cut_at, read_answer
from core.kdf import pkcs8_pem

TIMEOUT_S = 30.0
MAX_ANSWER = 1024 * 1024
TEMP_NAME = "RA-TLS TEMP Cert"

# Given the caller's key, the certificate extension that attests it.
Attest = Callable[[ec.EllipticCurvePublicKey], x509.UnrecognizedExtension]
# Raises a refusal unless the server's certificate is one that we want to speak to.
CheckServer = Callable[[x509.Certificate], None]


@dataclass(frozen=True)
class Introduction:
    """What a KMS tells a stranger: its root, and the CA under which he may present his evidence; all PEM."""

    ca_cert: str
    temp_ca_cert: str
    temp_ca_key: str


@dataclass(frozen=True)
class Kms:
    """A KMS at an address; `ca_cert` (PEM) is the only root trusted, none at all when it is empty."""

    url: str
    ca_cert: str = ""
    check_server: CheckServer = lambda certificate: None

    def introduction(self) -> Introduction:
        """GetTempCaCert, over a connection that trusts anybody: what it says is judged afterwards."""
        said = self.call("GetTempCaCert", {})
        return Introduction(
            *(_text(said, name) for name in ("ca_cert", "temp_ca_cert", "temp_ca_key"))
        )

    def call(
        self, method: str, params: Mapping[str, object], client: tuple[str, str] | None = None
    ) -> Mapping[str, Any]:
        """One RPC; `client` is the caller's certificate chain and key in PEM.

        Raises Upstream when the KMS is not there, not the one we trust or refuses, and UpstreamTimeout.
        """
        deadline = time.monotonic() + TIMEOUT_S
        try:
            with self._connection(client, deadline) as connection:
                body = json.dumps(params)
                headers = {"Content-Type": "application/json", "Connection": "close"}
                connection.request("POST", f"{self._path}/{method}?json", body, headers)
                answer = read_answer(connection.getresponse(), MAX_ANSWER, deadline)
                return _read(self.url, answer.status, answer.body)
        except (OSError, ValueError, http.client.HTTPException) as error:
            if time.monotonic() >= deadline or isinstance(error, TimeoutError):
                raise UpstreamTimeout(f"the KMS at {self.url} does not answer") from None
            # ValueError: a host name or a certificate that the libraries cannot make sense of.
            raise Upstream(f"the KMS at {self.url} cannot be asked: {error}") from None

    @property
    def _path(self) -> str:
        path = urlsplit(self.url).path.rstrip("/")
        return path if path.endswith("/prpc") else f"{path}/prpc"

    @contextlib.contextmanager
    def _connection(
        self, client: tuple[str, str] | None, deadline: float
    ) -> Iterator[http.client.HTTPConnection]:
        """A connection to the server that we want to speak to and to no other; it ends with the time."""
        host, port = self._host_and_port()
        connection = http.client.HTTPConnection(host, port)
        plain = connected(host, port, deadline)
        with contextlib.closing(connection), plain, cut_at(deadline, plain):
            context = _context(self.ca_cert, client)
            connection.sock = secure = context.wrap_socket(plain, server_hostname=host)
            shown = secure.getpeercert(binary_form=True) or b""
            self.check_server(x509.load_der_x509_certificate(shown))
            yield connection

    def _host_and_port(self) -> tuple[str, int]:
        try:
            parts = urlsplit(self.url)
            host, port = parts.hostname, parts.port or 443
        except ValueError:
            parts, host, port = None, None, 0
        if parts is None or parts.scheme != "https" or not host:
            raise Invalid(f"{self.url[:200]!r} is not an https:// address of a KMS")
        return host, port


def client_certificate(met: Introduction, attest: Attest) -> tuple[str, str]:
    """A fresh key and its certificate under the temporary CA, carrying the caller's evidence; both PEM."""
    try:
        ca_key = load_pem_private_key(met.temp_ca_key.encode(), None)
        ca = x509.load_pem_x509_certificate(met.temp_ca_cert.encode())
    except (ValueError, TypeError, UnsupportedAlgorithm):
        raise Upstream("the temporary CA of the KMS cannot be read") from None
    if not isinstance(ca_key, ec.EllipticCurvePrivateKey):
        raise Upstream("the temporary CA of the KMS has no elliptic curve key")
    key = ec.generate_private_key(ec.SECP256R1())
    leaf = Leaf(TEMP_NAME, extensions=[attest(key.public_key())])
    return Issuer(ca_key, ca).issue(key.public_key(), leaf) + pem(ca), pkcs8_pem(key)


def _context(ca_cert: str, client: tuple[str, str] | None) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    # kms.md section 6: the KMS is its root certificate; the name it is reached by says nothing.
    context.check_hostname = False
    if ca_cert:
        context.load_verify_locations(cadata=ca_cert)
    else:
        context.verify_mode = ssl.CERT_NONE
    if client:
        _load(context, *client)
    return context


def _load(context: ssl.SSLContext, chain: str, key: str) -> None:
    # The library reads keys from files alone; this one is for one conversation and is removed at once.
    with tempfile.NamedTemporaryFile("w", prefix="client-") as file:
        file.write(chain + key)
        file.flush()
        context.load_cert_chain(file.name)


def _read(url: str, status: int, body: bytes) -> Mapping[str, Any]:
    try:
        said = json.loads(body) if len(body) <= MAX_ANSWER else None
    except (ValueError, RecursionError):
        said = None
    if not isinstance(said, dict):
        raise Upstream(f"the KMS at {url} answered {status} with something that is no JSON object")
    if status != 200:
        raise Upstream(f"the KMS at {url} refused: {str(said.get('error', status))[:1000]}")
    return said


def _text(said: Mapping[str, Any], name: str) -> str:
    value = said.get(name)
    if not isinstance(value, str) or not value:
        raise Upstream(f"the answer of the KMS has no {name}")
    return value
