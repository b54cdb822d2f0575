"""The one HAProxy of a host: made to serve what the rows say, looked after as a VM's QEMU is, and asked how it is.

It runs in master-worker mode under vmm/runner.py, so it outlives the service and the next one recognises it.  What
changes of a cluster's nodes goes through its stats socket; a new or changed front is loaded by SIGUSR2, which
hands the listening sockets over.  Source: HAProxy's management guide, version 2.6.
"""

from __future__ import annotations

import contextlib
import csv
import functools
import logging
import os
import shutil
import signal
import socket
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from sqlalchemy import select
from sqlalchemy.orm import Session

from core import files, proc
from core.errors import CasemateError, Unavailable
from models.base import change_watch
from models.cluster import Cluster, ClusterNode
from models.port import PortLease
from models.vm import Vm
from secretvm import front
from secretvm.front import Front, Health, Server, Strategy, Traffic
from vmm import process, runner
from vmm.lifecycle import Wished
from vmm.service import Vms

logger = logging.getLogger(__name__)

PROGRAM = "haproxy"
FOLDER = "balancer"
FILE = "haproxy.cfg"
# One that fails at once must not be started in a tight loop.
RETRY_S = 5.0
# Starting and loading take milliseconds; a busy host is slow.
READY_S = 20.0
ANSWER_S = 5.0
GRACE_S = 5.0
UNSERVED = "the balancer does not serve this cluster yet"
_SCRIPT = Path(__file__).with_name(front.SCRIPT)
_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


# HAProxy's counters of a front, by name of its own row or a server's.
Stat = dict[str, dict[str, str]]


def missing() -> str:
    """Why this host has no balancer; "" when it may have one."""
    if shutil.which(PROGRAM) is None:
        return "haproxy is not installed on this host: apt-get install haproxy"
    return ""


@dataclass(frozen=True)
class Seen:
    """Why there is no balancer, what is to be served, and who serves it."""

    missing: str
    fronts: tuple[Front, ...]
    process: process.Process | None


@dataclass(frozen=True)
class Balancer:
    """The HAProxy of one data directory."""

    vms: Vms

    @property
    def folder(self) -> Path:
        """Where its files are, its working directory."""
        return self.vms.config.data_dir / FOLDER

    def settle(self) -> None:
        """Makes it serve what the rows say: starts, loads, changes or ends it; repeating this does no harm.

        Unavailable when it does not do so; without HAProxy nothing is done.
        """
        if missing():
            return
        self.folder.mkdir(mode=0o700, exist_ok=True)
        with files.locked(self.folder / "settle.lock", timeout_s=2 * READY_S):
            # Read under the lock: what is older must not follow what is newer.
            with self.vms.database.reading() as session:
                fronts = read_fronts(session)
            if fronts:
                self._serve(fronts)
            else:
                self._end()

    def seen(self) -> Seen:
        """What settling depends on: equal to an earlier answer when there is nothing to do since."""
        with self.vms.database.reading() as session:
            return Seen(missing(), tuple(read_fronts(session)), process.find(self.folder))

    def _serve(self, fronts: list[Front]) -> None:
        text = front.render(fronts, _SCRIPT.read_bytes())
        if text != self._file():
            self._write(text)
        found = self._find()
        if found is None:
            (self.folder / "stderr.log").unlink(missing_ok=True)
            process.spawn(self.folder, [PROGRAM, "-W", "-f", FILE])
        elif self._loaded() != front.revision(text):
            _signal(found, signal.SIGUSR2)
        self._await(front.revision(text))
        before = self.stats()
        for each in fronts:
            closed = [
                name
                for name, row in before.get(each.id, {}).items()
                if row["status"].startswith("MAINT")
            ]
            self._change(front.commands(each, closed))

    def _file(self) -> str:
        with contextlib.suppress(FileNotFoundError):
            return (self.folder / FILE).read_text()
        return ""

    def _write(self, text: str) -> None:
        """Puts a checked configuration in place; the one before stays when HAProxy refuses it."""
        script, candidate = _SCRIPT.read_bytes(), self.folder / f"{FILE}.new"
        files.write_atomic(self.folder / front.SCRIPT, script)
        files.write_atomic(candidate, text)
        proc.run([PROGRAM, "-c", "-f", candidate.name], cwd=self.folder, timeout_s=READY_S)
        files.write_atomic(self.folder / FILE, text)

    def _find(self) -> process.Process | None:
        found = process.find(self.folder)
        if found is None and process.is_locked(self.folder):
            # Its runner was killed before it could write down whom it had started.
            self._end_unrecorded()
        return found

    def _end_unrecorded(self) -> None:
        with contextlib.suppress(Unavailable):
            worker = int(self.info()["Pid"])
            master = int(Path(f"/proc/{worker}/stat").read_text().rpartition(")")[2].split()[1])
            _signal(process.Process(master, runner.start_time(master)), signal.SIGTERM)
        if not process.wait_unlocked(self.folder, GRACE_S):
            raise Unavailable(f"a {PROGRAM} that nobody knows holds {self.folder}")

    def _end(self) -> None:
        found = self._find()
        if found is not None and not process.end(self.folder, found, grace_s=GRACE_S):
            raise Unavailable(f"{PROGRAM} (process {found.pid}) does not end")

    def _loaded(self) -> str:
        with contextlib.suppress(Unavailable):
            return self.info().get("description", "")
        return ""

    def _await(self, revision: str) -> None:
        """Waits until the worker of a configuration answers."""
        deadline = time.monotonic() + READY_S
        while self._loaded() != revision:
            if process.find(self.folder) is None or time.monotonic() > deadline:
                why = process.last_line(self.folder / "stderr.log")
                raise Unavailable(f"{PROGRAM} does not serve its configuration: {why}")
            time.sleep(0.01)

    # Questions -----------------------------------------------------------------------------------

    def info(self) -> dict[str, str]:
        """What `show info` says; Unavailable when HAProxy does not answer."""
        pairs = (line.partition(": ") for line in self._ask("show info").splitlines())
        return {name: value for name, found, value in pairs if found}

    def uptime_s(self) -> int:
        """For how long it has served its configuration."""
        return int(self.info().get("Uptime_sec", 0))

    def stats(self) -> dict[str, Stat]:
        """Of each front the counters of itself (`FRONTEND`, `BACKEND`) and of its servers by name.

        Unavailable when HAProxy does not answer.
        """
        told = self._ask("show stat").removeprefix("# ")
        found: dict[str, Stat] = {}
        for row in csv.DictReader(told.splitlines()):
            # So marked while the next check is under way.
            row["check_status"] = row["check_status"].removeprefix("* ")
            found.setdefault(row["pxname"], {})[row["svname"]] = row
        return found

    def stat(self, front_id: str) -> Stat:
        """The same of one front; Unavailable also when HAProxy does not serve it."""
        found = self.stats().get(front_id)
        if found is None:
            raise Unavailable(UNSERVED)
        return found

    def _change(self, lines: Iterable[str]) -> None:
        for line in lines:
            told = self._ask(line).strip()
            # What it says of an address that it changed or kept is no complaint.
            if told and not told.startswith(("IP changed", "port changed", "no need to change")):
                raise Unavailable(f"{PROGRAM} refused `{line}`: {told[:200]}")

    def _ask(self, line: str) -> str:
        if reason := missing():
            raise Unavailable(reason)
        try:
            with socket.socket(socket.AF_UNIX) as connection:
                connection.settimeout(ANSWER_S)
                connection.connect(str(self.folder / front.STATS_SOCKET))
                connection.sendall(line.encode() + b"\n")
                with connection.makefile("rb") as answer:
                    return answer.read().decode(errors="replace")
        except OSError as error:
            raise Unavailable(f"the balancer does not answer: {error.strerror or error}") from None


@dataclass
class Keeper:
    """Brings HAProxy back when it ends, and makes it follow the rows; for one thread."""

    balancer: Balancer
    # How it was when it was settled last, and when it was looked at.
    settled: Seen | None = None
    looked_at: float = -RETRY_S
    trouble: str = ""

    @functools.cached_property
    def _changed(self) -> Callable[[], bool]:
        return change_watch(self.balancer.vms.database.path)

    def look(self) -> None:
        """Looks closely when anything may have changed, which is cheap to tell."""
        due = bool(self.trouble) and time.monotonic() - self.looked_at > RETRY_S
        if self._changed() or due or not self._lives():
            self.looked_at = time.monotonic()
            self._look()

    def _lives(self) -> bool:
        """Whether HAProxy is there, if it was to be at the last look."""
        found = self.settled.process if self.settled else None
        return found is None or process.is_alive(found)

    def _look(self) -> None:
        try:
            if self.balancer.seen() != self.settled:
                self.balancer.settle()
                self.settled = self.balancer.seen()
            self.trouble = ""
        except CasemateError as error:
            # Said once, not at every look.
            if error.message != self.trouble:
                logger.warning("the balancer: %s", error.message)
            self.trouble = error.message
        except Exception:  # a full disk passes, and the watch must go on
            logger.exception("the balancer could not be looked after")
            self.trouble = "internal error"


def read_fronts(session: Session, cluster_id: str | None = None) -> list[Front]:
    """The fronts of all clusters that are to be served, or of one of them."""
    served = select(Cluster).where(Cluster.is_removed.is_(False))
    if cluster_id is not None:
        served = served.where(Cluster.id == cluster_id)
    clusters = session.scalars(served.order_by(Cluster.created_ms, Cluster.id)).all()
    ports = _ports(session)
    return [_front(cluster, ports) for cluster in clusters]


def _ports(session: Session) -> dict[str, dict[int, tuple[str, int]]]:
    """Of the VMs that are nodes: where the host leads to which of their TCP ports."""
    leases = session.scalars(
        select(PortLease)
        .join(ClusterNode, ClusterNode.vm_id == PortLease.vm_id)
        .join(Vm, Vm.id == PortLease.vm_id)
        .where(PortLease.protocol == "tcp", Vm.wished != Wished.REMOVED)
        # A port that the service chose comes before one that a request named.
        .order_by(PortLease.own, PortLease.position.desc())
    )
    found: dict[str, dict[int, tuple[str, int]]] = {}
    for lease in leases:
        address = _LOOPBACK.get(lease.host_address, lease.host_address)
        found.setdefault(str(lease.vm_id), {})[lease.vm_port] = address, lease.host_port
    return found


def _front(cluster: Cluster, ports: dict[str, dict[int, tuple[str, int]]]) -> Front:
    servers = (_server(cluster, node, ports.get(node.vm_id or "", {})) for node in cluster.nodes)
    return Front(
        id=cluster.id,
        address=cluster.address,
        port=cluster.port,
        strategy=Strategy(cluster.strategy),
        sticky=cluster.sticky,
        max_connections=cluster.max_connections,
        password_hash=cluster.password_hash,
        backend_scheme=cluster.backend_scheme,
        health=Health(
            cluster.health_scheme,
            cluster.health_path,
            cluster.health_interval_s,
            cluster.health_timeout_s,
        ),
        servers=tuple(server for server in servers if server is not None),
    )


def _server(
    cluster: Cluster, node: ClusterNode, ports: dict[int, tuple[str, int]]
) -> Server | None:
    """A node as its front reaches it, or None while there is nothing to reach."""
    serves, checked = ports.get(cluster.backend_port), ports.get(cluster.health_port)
    if serves is None or checked is None:
        return None
    traffic = Traffic(node.traffic)
    return Server(node.slot, serves[0], serves[1], checked[1], node.weight, traffic)


def _signal(found: process.Process, number: signal.Signals) -> None:
    """Signals that very process; nothing when it has ended."""
    pidfd = process.open_pidfd(found)
    if pidfd is not None:
        try:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(pidfd, number)
        finally:
            os.close(pidfd)
