"""The way to the service of a run: requests below /proxy/services/<project>/<run>/ go to the port of one of its VMs.

The service is a stranger to this host and to its other pages: it sees neither the caller's token nor cookies, its answers
are followed nowhere, and its pages have an origin of their own (CSP sandbox).  Source: runs.md section 7.
"""

from __future__ import annotations

import http.client
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from urllib.parse import quote, urlsplit

from accounts.credentials import Credentials
from accounts.service import Accounts
from core.errors import NotFound, Unavailable, Upstream, UpstreamTimeout
from models.base import Database
from runs import access, records, rolling
from vmm.service import Vms

PREFIX = "/proxy/services"
CONNECT_S = 10.0
# A service that says nothing for so long gives its thread back.
SILENT_S = 300.0
CHUNK = 64 * 1024

# RFC 9110 section 7.6.1, and what belongs to this host or speaks of the connection.
_OF_THE_CONNECTION = frozenset({
    "connection", "keep-alive", "proxy-authenticate", "proxy-authorization", "proxy-connection", "te", "trailer",
    "transfer-encoding", "upgrade",
})  # fmt: skip
_NOT_FORWARDED = _OF_THE_CONNECTION | {"cookie", "host", "x-api-key", "content-length"}
_NOT_ANSWERED = _OF_THE_CONNECTION | {
    "set-cookie",
    "set-cookie2",
    "clear-site-data",
    "date",
    "server",
}
# Its scripts run, but as nobody: not with the session of who looks at this host's own pages.
SANDBOX = "sandbox allow-downloads allow-forms allow-modals allow-popups allow-scripts"

Headers = list[tuple[str, str]]


@dataclass(frozen=True)
class Request:
    """What a client sent; `target` is the path as it was written, with its query."""

    method: str
    target: str
    headers: Headers
    body: bytes
    client: str
    scheme: str
    host: str


@dataclass(frozen=True)
class Answer:
    """What the service says; `pieces` come as it sends them."""

    status: int
    headers: Headers
    pieces: Iterator[bytes]


@dataclass(frozen=True)
class Endpoint:
    """Where a service listens on this host, and how it is spoken to."""

    address: str
    port: int
    prefix: str
    strips_prefix: bool
    # The caller's credential was for us.
    keeps_credential: bool


@dataclass(frozen=True)
class Proxy:
    """The services of this host's runs."""

    database: Database
    vms: Vms
    accounts: Accounts

    def find(self, project_name: str, run_name: str, shown: Credentials) -> Endpoint:
        """Where a running service is reached, by a caller who may.

        As for any call, who may not see a project learns nothing of its runs.  NotFound, Unavailable while none of its
        replicas is ready.
        """
        with self.database.reading() as session:
            run = records.service_of(session, project_name, run_name)
            configuration = run.spec["configuration"] if run is not None else {}
            if run is None or configuration.get("auth", True):
                access.project(session, self.accounts.authenticate(shown), project_name)
            if run is None or configuration["type"] != "service":
                raise NotFound(
                    f"there is no service {run_name[:64]} in project {project_name[:64]}"
                )
            places = [
                (job.instance.vm_id, job.spec["service_port"])
                for job in run.jobs
                if rolling.is_ready(job) and job.instance
            ]
        random.shuffle(places)
        for vm_id, port in places:
            if vm_id and (found := self.vms.published(vm_id).get(port)):
                address = found.host_address.replace("0.0.0.0", "127.0.0.1")
                prefix = f"{PREFIX}/{project_name}/{run_name}"
                strips = configuration.get("strip_prefix", True)
                keeps = not configuration.get("auth", True)
                return Endpoint(address, found.host_port, prefix, strips, keeps)
        raise Unavailable(
            f"service {run_name} is not running, or not ready; see its status and try again"
        )


def forward(endpoint: Endpoint, request: Request) -> Answer:
    """Sends a request to a service; Upstream and UpstreamTimeout when it does not answer in HTTP."""
    connection = http.client.HTTPConnection(endpoint.address, endpoint.port, timeout=CONNECT_S)
    # Escapes stay as the client wrote them.
    target = quote(request.target, safe="/?:@!$&'()*+,;=-._~%[]")
    if endpoint.strips_prefix:
        target = "/" + target.removeprefix(endpoint.prefix).lstrip("/")
    try:
        connection.connect()
        connection.sock.settimeout(SILENT_S)
        connection.putrequest(request.method, target, skip_host=True, skip_accept_encoding=True)
        for name, value in _onward(endpoint, request):
            connection.putheader(name, value)
        connection.endheaders(request.body or None)
        response = connection.getresponse()
    except TimeoutError:
        connection.close()
        raise UpstreamTimeout("the service did not answer in time") from None
    except (OSError, http.client.HTTPException, ValueError) as error:
        connection.close()
        raise Upstream(f"the service does not answer: {type(error).__name__}") from None
    dropped = _NOT_ANSWERED | connection_names(response)
    # A piece at a time has no length of its own.
    dropped |= {"content-length"} if response.getheader("transfer-encoding") else set()
    headers = list(_back(endpoint, response.getheaders(), dropped))
    return Answer(response.status, headers, _pieces(response, connection))


def connection_names(response: http.client.HTTPResponse) -> frozenset[str]:
    """The headers that an answer's Connection header says are of the connection alone."""
    named = response.getheader("connection") or ""
    return frozenset(each.strip().lower() for each in named.split(","))


def _onward(endpoint: Endpoint, request: Request) -> Iterator[tuple[str, str]]:
    named = [value for name, value in request.headers if name.lower() == "connection"]
    dropped = {each.strip().lower() for value in named for each in value.split(",")}
    dropped |= (
        _NOT_FORWARDED | {"authorization"} if not endpoint.keeps_credential else _NOT_FORWARDED
    )
    for name, value in request.headers:
        if name.lower() not in dropped and not name.lower().startswith("x-forwarded-"):
            yield name, value
    yield "Host", request.host
    yield "Connection", "close"
    yield "X-Forwarded-For", request.client
    yield "X-Forwarded-Host", request.host
    yield "X-Forwarded-Proto", request.scheme
    yield "X-Forwarded-Prefix", endpoint.prefix
    if request.body or request.method in ("POST", "PUT", "PATCH"):
        yield "Content-Length", str(len(request.body))


def _back(
    endpoint: Endpoint, headers: Iterable[tuple[str, str]], dropped: frozenset[str]
) -> Iterator[tuple[str, str]]:
    for name, value in headers:
        if name.lower() in dropped:
            continue
        if name.lower() == "location" and endpoint.strips_prefix:
            value = _below(endpoint.prefix, value)
        yield name, value
    yield "Content-Security-Policy", SANDBOX
    yield "X-Accel-Buffering", "no"


def _below(prefix: str, location: str) -> str:
    """A redirect of the service to its own root, as seen from outside; others stay as they are."""
    parts = urlsplit(location)
    if parts.scheme or parts.netloc or not parts.path.startswith("/"):
        return location
    return prefix + location


def _pieces(
    response: http.client.HTTPResponse, connection: http.client.HTTPConnection
) -> Iterator[bytes]:
    try:
        while data := response.read1(CHUNK):
            yield data
    except (OSError, http.client.HTTPException):
        return  # cut off: the client sees an answer that ends
    finally:
        connection.close()
