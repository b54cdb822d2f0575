"""Connections that a stranger asks this host to make: few, short, over TLS, and only to addresses that were checked.

A name is resolved once; what it stands for is checked and then connected to, so that a name which answers
differently the second time gains nothing.  What the peer shows is read, not trusted.
Source: secretvm.md section 8 (limits), quality.md section 5.3 (forms of attack).
"""

from __future__ import annotations

import contextlib
import http.client
import ipaddress
import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import Any

from core.errors import Invalid, Unavailable, Upstream
from core.http import Answer, cut_at, in_time, left, read_answer

# secretvm.md section 8.
CONNECT_S = 5.0
CALL_S = 10.0
BODY_LIMIT = 256 * 1024
# Calls at once in a process: each holds a thread for up to CALL_S.
PLACES = 16

_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")
# A last label of this form makes resolvers read the whole name as an IPv4 address of some kind.
_NUMBER = re.compile(r"0[xX][0-9a-fA-F]*|[0-9]+")
# Global by IANA's tables, but they carry an IPv4 address, which may be any, or were withdrawn.
_CARRIERS = tuple(
    map(
        ipaddress.ip_network,
        ("::/96", "::ffff:0:0:0/96", "64:ff9b::/96", "64:ff9b:1::/48", "2001::/23", "2002::/16",
         "3fff::/20", "5f00::/16", "fec0::/10", "192.0.0.0/24", "192.88.99.0/24"),
    )
)  # fmt: skip

# As socket.getaddrinfo(host, port, type=...).
Resolve = Callable[..., Sequence[tuple[Any, ...]]]
_Address = tuple[int, tuple[Any, ...]]


class Reach(Enum):
    """Where a stranger may send this host."""

    OFF = "off"
    PUBLIC = "public"
    ANY = "any"


@dataclass(frozen=True)
class Target:
    """A host (a DNS name or an IP address in its one usual form) and a port, neither looked up yet."""

    host: str
    port: int

    @classmethod
    def of(cls, host: str, port: int) -> Target:
        """Reads what a caller wrote; Invalid when it is no host, or a port that no TLS service of ours has."""
        if port != 443 and not 1024 < port <= 65535:
            raise Invalid.field("port", "must be 443 or from 1025 to 65535")
        return cls(_host(host), port)

    @property
    def is_address(self) -> bool:
        """Whether the host is an IP address, which has no name to match."""
        return ":" in self.host or _NUMBER.fullmatch(self.host.rpartition(".")[2]) is not None

    @property
    def authority(self) -> str:
        """Host and port as URLs have them."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def _host(text: str) -> str:
    bare = text[1:-1] if text[:1] == "[" and text[-1:] == "]" else text
    try:
        # Python reads IPv4 strictly: four decimal parts without leading zeros.
        read = ipaddress.ip_address(bare)
    except ValueError:
        pass
    else:
        if "%" in bare:
            raise Invalid.field("domain", "an address must not name an interface")
        return str(read)
    labels = text.removesuffix(".").split(".")
    if len(text) > 253 or not all(_LABEL.fullmatch(label) for label in labels):
        raise Invalid.field("domain", "must be a host name or an IP address, and nothing else")
    if _NUMBER.fullmatch(labels[-1]):
        raise Invalid.field("domain", "an IPv4 address must be four decimal numbers")
    return text.lower()


def is_public(address: str) -> bool:
    """Whether an IP address (text) is one that anybody on the Internet may reach, and nothing of ours."""
    try:
        read = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(read, ipaddress.IPv6Address) and read.ipv4_mapped:
        read = read.ipv4_mapped
    carries = any(read in network for network in _CARRIERS if network.version == read.version)
    return read.is_global and not (carries or read.is_multicast or read.is_reserved)


class Outbound:
    """The host's way out for strangers."""

    def __init__(self, reach: Reach, resolve: Resolve = socket.getaddrinfo) -> None:
        self._reach = reach
        self._resolve = resolve
        self._places = threading.BoundedSemaphore(PLACES)

    @contextlib.contextmanager
    def call(self) -> Iterator[float]:
        """A place among those who ask, and the moment (monotonic) when all of it must have ended."""
        if self._reach is Reach.OFF:
            raise Unavailable("this service asks no other hosts ([attestation] outbound is off)")
        if not self._places.acquire(blocking=False):
            raise Unavailable(f"{PLACES} hosts are being asked already; try again in some seconds")
        try:
            yield time.monotonic() + CALL_S
        finally:
            self._places.release()

    @contextlib.contextmanager
    def connected(self, target: Target, deadline: float) -> Iterator[Link]:
        """A TLS connection to the target, closed afterwards.

        Raises Invalid when one of its addresses may not be reached, Upstream when there is no connection.
        """
        until = min(deadline, time.monotonic() + CONNECT_S)
        with contextlib.ExitStack() as held:
            try:
                link = self._link(target, until, deadline, held)
            except TimeoutError:
                raise Upstream(f"{target.authority} did not answer in time") from None
            except (OSError, UnicodeError) as error:
                why = getattr(error, "strerror", None) or str(error) or type(error).__name__
                raise Upstream(f"{target.authority} cannot be reached: {why}") from None
            yield link

    def _link(
        self, target: Target, until: float, deadline: float, held: contextlib.ExitStack
    ) -> Link:
        addresses = self._addresses(target, until)
        try:
            secured = _secured(addresses, target, until, deadline, _context(verify=True), held)
            distrust = ""
        except ssl.SSLCertVerificationError as error:
            held.close()
            distrust = error.verify_message
            # The certificate is what is looked at: an own one is no reason not to, and the answer says so.
            secured = _secured(addresses, target, until, deadline, _context(verify=False), held)
        certificate = secured.getpeercert(binary_form=True)
        if not certificate:
            raise OSError("it showed no certificate")
        secured.settimeout(left(deadline))
        return Link(target, certificate, distrust, secured, deadline)

    def _addresses(self, target: Target, until: float) -> list[_Address]:
        """Every address of the target, each checked."""
        found = in_time(
            lambda: self._resolve(target.host, target.port, type=socket.SOCK_STREAM), until
        )
        addresses = [(family, address) for family, _, _, _, address in found]
        if not addresses:
            raise OSError("it has no address")
        if self._reach is Reach.PUBLIC and not all(is_public(each[1][0]) for each in addresses):
            raise Invalid.field("domain", f"{target.host} is not a public address")
        return addresses


@dataclass(frozen=True)
class Link:
    """An open TLS connection: the certificate (DER) that was shown on it, and why nobody vouches for that."""

    target: Target
    certificate: bytes
    distrust: str
    _secured: ssl.SSLSocket
    _deadline: float

    def get(self, path: str) -> Answer:
        """One GET on this very connection; a redirect is an answer like any other.

        Raises Upstream when nothing (more) comes, or more than BODY_LIMIT bytes.
        """
        try:
            self._secured.settimeout(left(self._deadline))
            return self._exchange(path)
        except (OSError, http.client.HTTPException, Upstream) as error:
            # What is left of an answer would be read as the next one.
            self._secured.close()
            why = str(error) or type(error).__name__
            raise Upstream(f"{self.target.authority}{path} was not answered: {why}") from None

    def _exchange(self, path: str) -> Answer:
        request = (
            f"GET {path} HTTP/1.1\r\nHost: {self.target.authority}\r\n"
            "User-Agent: casemate\r\nAccept: */*\r\nAccept-Encoding: identity\r\n\r\n"
        )
        self._secured.sendall(request.encode("ascii"))
        # Not http.client's connection, which would open another one by itself.
        answer = http.client.HTTPResponse(self._secured, method="GET")
        answer.begin()
        told = read_answer(answer, BODY_LIMIT, self._deadline)
        if len(told.body) > BODY_LIMIT:
            raise Upstream(f"more than {BODY_LIMIT} bytes")
        return told


def _secured(
    addresses: Sequence[_Address],
    target: Target,
    until: float,
    deadline: float,
    context: ssl.SSLContext,
    held: contextlib.ExitStack,
) -> ssl.SSLSocket:
    """A TLS connection to the first address that takes one, kept open by `held`."""
    plain = held.enter_context(_connected(addresses, until))
    # A time-out of the socket counts from byte to byte.
    held.enter_context(cut_at(deadline, plain))
    plain.settimeout(left(until))
    name = None if target.is_address else target.host.removesuffix(".")
    return held.enter_context(context.wrap_socket(plain, server_hostname=name))


def _connected(addresses: Sequence[_Address], until: float) -> socket.socket:
    failure: OSError = OSError("it has no address")
    for number, (family, address) in enumerate(addresses):
        made = socket.socket(family, socket.SOCK_STREAM)
        try:
            made.settimeout(left(until) / (len(addresses) - number))
            made.connect(address)
            return made
        except OSError as error:
            made.close()
            failure = error
    raise failure


def _context(*, verify: bool) -> ssl.SSLContext:
    context = ssl.create_default_context()
    # Names are compared by whoever asks, so that a wrong one is told apart from a chain nobody knows.
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED if verify else ssl.CERT_NONE
    return context
