"""What went through the fronts of clusters: HAProxy's lines of its requests, added up in the database.

A line says `proxy server status bytes-out bytes-in TR Tt Ta flags` (secretvm/front.py has the format).  The lines
come over a stream, each with its length before it (RFC 6587, octet counting), out of a ring in HAProxy that keeps
them while nobody reads.
"""

from __future__ import annotations

import contextlib
import logging
import math
import re
import selectors
import socket
import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session

from models.base import Database
from models.cluster import Cluster, ClusterCount, ClusterSlot
from secretvm.balancer import Balancer
from secretvm.front import LOG_SOCKET
from vmm import usage

logger = logging.getLogger(__name__)

# How old the figures in the database may be; they have to be there within a second.
FLUSH_S = 0.4
# One point of a cluster's chart stands for so long, and the last hour is kept.
SLOT_MS = 15_000
_READ = 262_144
_LENGTH = re.compile(rb"(\d{1,5}) ")
_LENGTH_BEGUN = re.compile(rb"\d{1,5} |\d{0,5}\Z")

# Upper ends of the latency histogram, in ms: each a fifth to a quarter above the one before, so that a percentile is
# right to about a tenth.
BUCKETS_MS = tuple(dict.fromkeys(round(1.25**step) for step in range(58))) + (math.inf,)

REQUESTS, ANSWERED, MILLISECONDS, BYTES_IN, BYTES_OUT = "requests", "answered", "ms", "in", "out"
_CODE, _BUCKET = "code:", "le:"

Tally = dict[str, Counter[str]]


@dataclass(frozen=True)
class Totals:
    """What a cluster's front has counted since its making."""

    requests: int
    bytes_in: int
    bytes_out: int
    # Requests that were answered, what all their answers took, and how many took at most so long.
    answered: int
    milliseconds: int
    codes: Mapping[str, int]
    buckets: Mapping[float, int]

    @property
    def average_ms(self) -> float | None:
        """The mean latency; None before the first answer."""
        return round(self.milliseconds / self.answered, 3) if self.answered else None

    def percentile_ms(self, share: float) -> float | None:
        """The latency that this share of the requests did not exceed, straight between the ends of its bucket.

        None before the first answer.
        """
        below, lower = 0, 0.0
        for upper, count in self.buckets.items():
            if count and below + count >= share * self.answered:
                inside = (share * self.answered - below) / count
                return lower if upper == math.inf else round(lower + (upper - lower) * inside, 3)
            below, lower = below + count, upper
        return None


def read(session: Session, cluster_id: str) -> Totals:
    """The totals of a cluster."""
    rows = select(ClusterCount.name, ClusterCount.value).where(
        ClusterCount.cluster_id == cluster_id
    )
    values = {row.name: row.value for row in session.execute(rows)}
    codes = {name.removeprefix(_CODE): n for name, n in values.items() if name.startswith(_CODE)}
    return Totals(
        requests=values.get(REQUESTS, 0),
        bytes_in=values.get(BYTES_IN, 0),
        bytes_out=values.get(BYTES_OUT, 0),
        answered=values.get(ANSWERED, 0),
        milliseconds=values.get(MILLISECONDS, 0),
        codes=dict(sorted(codes.items())),
        buckets={each: values.get(f"{_BUCKET}{each}", 0) for each in BUCKETS_MS},
    )


def add(database: Database, tally: Mapping[str, Mapping[str, int]]) -> None:
    """Adds to the totals of clusters; what was counted for one that is gone is forgotten."""
    with database.writing() as session:
        known = set(session.scalars(select(Cluster.id).where(Cluster.id.in_(tally))))
        values = [
            {"cluster_id": cluster_id, "name": name, "value": value}
            for cluster_id, counts in tally.items()
            if cluster_id in known
            for name, value in counts.items()
        ]
        if values:
            rows = insert(ClusterCount).values(values)
            more = {"value": ClusterCount.value + rows.excluded.value}
            session.execute(
                rows.on_conflict_do_update(index_elements=["cluster_id", "name"], set_=more)
            )
            _add_slots(session, {each: tally[each] for each in known})


def _add_slots(session: Session, tally: Mapping[str, Mapping[str, int]]) -> None:
    """Adds to the newest point of each cluster's chart, and drops those that are too old."""
    now = _now_ms()
    names = {"requests": REQUESTS, "answered": ANSWERED, "milliseconds": MILLISECONDS}
    rows = insert(ClusterSlot).values(
        [
            {
                "cluster_id": cluster_id,
                "at_ms": now // SLOT_MS * SLOT_MS,
                **{column: counts.get(name, 0) for column, name in names.items()},
            }
            for cluster_id, counts in tally.items()
        ]
    )
    more = {each: getattr(ClusterSlot, each) + rows.excluded[each] for each in names}
    session.execute(rows.on_conflict_do_update(index_elements=["cluster_id", "at_ms"], set_=more))
    old = ClusterSlot.at_ms < now - usage.KEPT_MS
    session.execute(delete(ClusterSlot).where(ClusterSlot.cluster_id.in_(tally), old))


def history(session: Session, cluster_id: str) -> tuple[usage.Curve, usage.Curve]:
    """The last hour of a cluster: requests a second, and the mean time of an answer in ms (none without answers)."""
    now = _now_ms()
    first = (now - usage.KEPT_MS) // SLOT_MS + 1
    of_it = (ClusterSlot.cluster_id == cluster_id, ClusterSlot.at_ms >= first * SLOT_MS)
    found = {row.at_ms: row for row in session.scalars(select(ClusterSlot).where(*of_it))}
    # The slot under way is not full yet: it would look like a fall.
    moments = range(first * SLOT_MS, now // SLOT_MS * SLOT_MS, SLOT_MS)
    rates = [
        (at + SLOT_MS, found[at].requests * 1000 / SLOT_MS if at in found else 0.0)
        for at in moments
    ]
    times = [
        (at + SLOT_MS, found[at].milliseconds / found[at].answered)
        for at in moments
        if at in found and found[at].answered
    ]
    return usage.curve(rates, 1.0, now), usage.curve(times, 10.0, now)


def _now_ms() -> int:
    return time.time_ns() // 1_000_000


def count(tally: Tally, line: str) -> None:
    """Counts one line; what is none of ours is passed over."""
    words = line.split()
    if len(words) != 9 or not all(word.lstrip("+-").isdecimal() for word in words[2:8]):
        return
    status, out, in_, _, _, active = (int(word.lstrip("+")) for word in words[2:8])
    counts = tally.setdefault(words[0], Counter())
    counts.update({REQUESTS: 1, BYTES_OUT: max(out, 0), BYTES_IN: max(in_, 0)})
    if status > 0:
        counts[f"{_CODE}{status}"] += 1
    # Without an answer, because the client left, there is nothing to measure.
    if status > 0 and active >= 0:
        bucket = BUCKETS_MS[bisect_left(BUCKETS_MS, active)]
        counts.update({ANSWERED: 1, MILLISECONDS: active, f"{_BUCKET}{bucket}": 1})


@dataclass
class Stream:
    """One connection of HAProxy's and what has come over it of a line that is not whole yet."""

    connection: socket.socket
    pending: bytes = b""

    def lines(self) -> Iterator[str] | None:
        """The lines that are there now, or None when the connection is at its end."""
        try:
            data = self.connection.recv(_READ)
        except BlockingIOError:
            return iter(())
        except OSError:
            return None
        self.pending += data
        return self._whole() if data else None

    def _whole(self) -> Iterator[str]:
        at = 0
        while match := _LENGTH.match(self.pending, at):
            end = match.end() + int(match[1])
            if end > len(self.pending):
                break
            yield self.pending[match.end() : end].decode(errors="replace")
            at = end
        self.pending = self.pending[at:]
        if not _LENGTH_BEGUN.match(self.pending):
            raise ValueError("no length where one must be")


@dataclass
class Reader:
    """What the background process runs: takes HAProxy's lines and adds them to the database."""

    balancer: Balancer
    stopping: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None
    tally: Tally = field(default_factory=dict)
    selector: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)

    def start(self) -> None:
        """Listens where HAProxy sends its lines, and reads."""
        folder = self.balancer.folder
        folder.mkdir(mode=0o700, exist_ok=True)
        path = folder / LOG_SOCKET
        path.unlink(missing_ok=True)
        listener = socket.socket(socket.AF_UNIX)
        try:
            listener.bind(str(path))
        except OSError as error:  # the path of the data directory is too long for a socket
            logger.warning("the traffic of clusters is not counted: %s: %s", path, error)
            return
        listener.listen()
        listener.setblocking(False)
        self.selector.register(listener, selectors.EVENT_READ, None)
        self.thread = threading.Thread(target=self._read, name="traffic", daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Reads what is there already, adds it, and ends."""
        self.stopping.set()
        if self.thread is not None:
            self.thread.join()

    def _read(self) -> None:
        flushed = time.monotonic()
        while not self.stopping.is_set():
            self._take(FLUSH_S / 4 if self.tally else FLUSH_S)
            if self.tally and time.monotonic() - flushed > FLUSH_S:
                self._flush()
                flushed = time.monotonic()
        self._take(0)
        self._flush()
        for key in list(self.selector.get_map().values()):
            self._close(key.fileobj)

    def _take(self, patience_s: float) -> None:
        for key, _ in self.selector.select(patience_s):
            if key.data is None:
                self._accept(key.fileobj)
                continue
            lines = key.data.lines()
            if lines is None:
                self._close(key.fileobj)
                continue
            try:
                for line in lines:
                    count(self.tally, line)
            except (
                ValueError
            ):  # no length where one must be: it has lost its step, and will connect anew
                self._close(key.fileobj)

    def _accept(self, listener: Any) -> None:
        with contextlib.suppress(OSError):
            connection, _ = listener.accept()
            connection.setblocking(False)
            self.selector.register(connection, selectors.EVENT_READ, Stream(connection))

    def _close(self, connection: Any) -> None:
        self.selector.unregister(connection)
        connection.close()

    def _flush(self) -> None:
        """Adds what was counted; when that fails (the disk is full) it is kept for the next time."""
        try:
            add(self.balancer.vms.database, self.tally)
            self.tally = {}
        except Exception:  # counting goes on whatever the database says
            logger.exception("the traffic of clusters could not be written down")
