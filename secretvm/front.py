"""The fronts of clusters as HAProxy reads them: values out of the rows, and the configuration out of the values.

Source: HAProxy's configuration manual, version 2.6; secretvm.md section 6, "Load balancer".
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

# Nodes of a cluster (secretvm.md section 6).
NODES_MOST = 3
# The user of a front with a password (secretvm.md section 6).
USER = "admin"

# Names in the folder that HAProxy is started in.
STATS_SOCKET = "stats.sock"
SCRIPT = "balancer.lua"

_SERVER = "  server "
_REVISION = "  description "


class Strategy(StrEnum):
    """How a front chooses the node of a request."""

    ROUNDROBIN = "roundrobin"
    LEASTCONN = "leastconn"
    P2C = "p2c"
    HRW = "hrw"
    LEASTTIME = "leasttime"

    @property
    def is_scripted(self) -> bool:
        """Whether it is done by balancer.lua."""
        return self in (Strategy.HRW, Strategy.LEASTTIME)


# What HAProxy does itself, also where the script has no choice to offer.
_BALANCE = {
    Strategy.ROUNDROBIN: ("balance roundrobin",),
    Strategy.LEASTCONN: ("balance leastconn",),
    Strategy.P2C: ("balance random(2)",),
    Strategy.HRW: ("balance source", "hash-type consistent"),
    Strategy.LEASTTIME: ("balance leastconn",),
}


class Traffic(StrEnum):
    """What a node is to get of its front's requests: its share, those that stick to it, or none.

    One that leaves drains, and does not come back.
    """

    OPEN = "open"
    DRAIN = "drain"
    CLOSED = "closed"
    LEAVING = "leaving"

    @property
    def state(self) -> str:
        """HAProxy's word for it."""
        return {"open": "ready", "closed": "maint"}.get(self, "drain")


@dataclass(frozen=True)
class Health:
    """What is asked of a node to know whether it is well."""

    scheme: str
    path: str
    interval_s: int
    timeout_s: int


@dataclass(frozen=True)
class Server:
    """A node as its front reaches it; `slot` is its place from 1."""

    slot: int
    address: str
    port: int
    check_port: int
    weight: int = 1
    traffic: Traffic = Traffic.OPEN

    @property
    def name(self) -> str:
        """What HAProxy calls it."""
        return f"n{self.slot}"


@dataclass(frozen=True)
class Front:
    """Where a cluster is served, and how."""

    id: str
    address: str
    port: int
    strategy: Strategy
    sticky: bool
    max_connections: int
    password_hash: str | None
    backend_scheme: str
    health: Health
    servers: tuple[Server, ...]

    def server(self, slot: int) -> Server:
        """The node of a place; one that no traffic may reach where there is none."""
        found = (each for each in self.servers if each.slot == slot)
        return next(found, Server(slot, "127.0.0.1", 1, 1, traffic=Traffic.CLOSED))

    def slots(self) -> list[Server]:
        """All places: a server of HAProxy's for each from the start, so that nodes come without a reload."""
        return [self.server(slot) for slot in range(1, NODES_MOST + 1)]


def render(fronts: Sequence[Front], script: bytes) -> str:
    """The configuration of an HAProxy that serves some fronts, with `script` as its balancer.lua."""
    text = "\n".join(_lines(fronts, hashlib.sha256(script).hexdigest())) + "\n"
    return text.replace(_REVISION, _REVISION + revision(text), 1)


def revision(text: str) -> str:
    """A name for all of a configuration that cannot be changed but by loading it."""
    fixed = (line for line in text.splitlines() if not line.startswith((_SERVER, _REVISION)))
    return hashlib.sha256("\n".join(fixed).encode()).hexdigest()[:32]


def commands(front: Front, closed: Collection[str]) -> Iterator[str]:
    """What brings the servers of a running front, of which some are `closed`, to where the rendered file has them."""
    for server in front.slots():
        name = f"{front.id}/{server.name}"
        yield f"set server {name} addr {server.address} port {server.port}"
        yield f"set server {name} check-port {server.check_port}"
        yield f"set server {name} weight {server.weight}"
        state = f"set server {name} state {server.traffic.state}"
        if server.name in closed and server.traffic is not Traffic.CLOSED:
            # HAProxy thinks well of who comes back until a check says otherwise; here checks come first.
            state += f"; set server {name} health down"
        yield state


def cookie(front_id: str) -> str:
    """The cookie that makes a client stay: browsers send one of a host to all ports of it."""
    return f"casemate_{front_id[:8]}"


def _lines(fronts: Sequence[Front], script_digest: str) -> Iterator[str]:
    yield "# Written by Casemate from its database; changes made here are lost."
    yield f"# {SCRIPT} {script_digest}"
    yield from _global()
    yield from _defaults()
    for front in fronts:
        if front.password_hash is not None:
            yield f"userlist {front.id}"
            yield f"  user {USER} password {front.password_hash}"
        yield from _listen(front)


def _global() -> Iterator[str]:
    yield "global"
    yield _REVISION
    yield f"  stats socket unix@{STATS_SOCKET} mode 600 level admin expose-fd listeners"
    yield f"  lua-load {SCRIPT}"
    # A file takes every line, whether or not somebody reads it: a datagram socket drops the eleventh of a burst, and a
    # ring without its reader tries to reach it some hundred times a second.
    yield "  log stdout format raw local0"
    # Of two threads that write a line at the same moment one gives up, and its line is lost.
    yield "  nbthread 1"
    yield "  maxconn 20000"
    # A host that allows fewer descriptors gets fewer connections, not no front.
    yield "  no strict-limits"
    yield "  hard-stop-after 15m"


def _defaults() -> Iterator[str]:
    yield "defaults"
    yield "  mode http"
    yield "  log global"
    yield "  option dontlognull"
    yield '  log-format "%b %s %ST %B %U %TR %Tt %Ta %tsc"'
    yield "  option forwardfor"
    # A client that waits with an open connection hears of a reload with its next answer, not by a reset.
    yield "  option idle-close-on-response"
    yield "  option redispatch 1"
    yield "  retries 3"
    # QEMU takes connections to a guest that does not listen, and drops them: no answer came, none was begun.
    yield "  retry-on conn-failure empty-response"
    yield "  timeout connect 5s"
    yield "  timeout client 60s"
    yield "  timeout server 300s"
    yield "  timeout tunnel 1h"
    yield "  timeout http-request 15s"
    yield "  timeout http-keep-alive 10s"


def _listen(front: Front) -> Iterator[str]:
    address = f"[{front.address}]" if ":" in front.address else front.address
    yield f"listen {front.id}"
    yield f"  bind {address}:{front.port}"
    yield f"  maxconn {front.max_connections}"
    yield from (f"  {line}" for line in _BALANCE[front.strategy])
    if front.password_hash is not None:
        yield f"  http-request auth realm cluster unless {{ http_auth({front.id}) }}"
        yield "  http-request del-header Authorization"
    # What may not be done twice is sent once.
    yield "  http-request disable-l7-retry unless METH_GET"
    if front.sticky:
        yield f"  cookie {cookie(front.id)} insert indirect nocache httponly"
    if front.strategy.is_scripted:
        yield from _script(front)
    yield from _checks(front)
    for server in front.slots():
        yield _SERVER + _server(server)


def _script(front: Front) -> Iterator[str]:
    chosen = f"  use-server %[lua.{front.strategy}({front.id})] if"
    if not front.sticky:
        yield f"{chosen} TRUE"
        return
    # Who has a node already stays there, also where the script would choose another.  Of a server that the script
    # chose HAProxy thinks that the client had named it, and gives no cookie.
    name = cookie(front.id)
    yield f"  http-request set-var(txn.new) int(1) unless {{ req.cook({name}) -m found }}"
    yield f"{chosen} {{ var(txn.new) -m found }}"
    given = f'"{name}=%s; path=/; HttpOnly" if {{ var(txn.new) -m found }}'
    yield f"  http-after-response add-header Set-Cookie {given}"
    yield "  http-after-response add-header Cache-Control private if { var(txn.new) -m found }"


def _checks(front: Front) -> Iterator[str]:
    health = front.health
    yield "  option httpchk"
    yield f"  http-check send meth GET uri {health.path} ver HTTP/1.1 hdr Host localhost"
    yield "  http-check expect status 200-399"
    yield f"  timeout check {health.timeout_s}s"
    # Every node has a certificate of its own making; what it proves, its quote says.
    tls = "ssl verify none" if front.backend_scheme == "https" else "no-ssl"
    check_tls = "check-ssl verify none" if health.scheme == "https" else "no-check-ssl"
    yield (
        f"  default-server {tls} check {check_tls} inter {health.interval_s}s "
        "fastinter 1s downinter 1s fall 2 rise 1"
    )


def _server(server: Server) -> str:
    weight = 0 if server.traffic.state == "drain" else server.weight
    disabled = " disabled" if server.traffic is Traffic.CLOSED else ""
    return (
        f"{server.name} {server.address}:{server.port} port {server.check_port} "
        f"weight {weight} cookie {server.name}{disabled}"
    )
