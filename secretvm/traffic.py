"""What went through the fronts of clusters: HAProxy's lines of its requests, added up in the database.

A line says `proxy server status bytes-out bytes-in TR Tt Ta flags` (secretvm/front.py has the format).  HAProxy appends
them to a file, also while no service runs; how far it was read is written down with what was counted, so that no line
is counted twice or passed over, whoever is killed in between.
"""

from __future__ import annotations

import logging
import math
import os
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from sqlalchemy import delete, select
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session

from core import proc
from core.errors import CasemateError
from models.base import Database
from models.cluster import Cluster, ClusterCount, ClusterSlot, TrafficLog
from secretvm.balancer import Balancer
from vmm import usage

logger = logging.getLogger(__name__)

# One point of a cluster's chart stands for so long, and the last hour is kept.
SLOT_MS = 15_000
# What vmm/runner.py makes of the standard output of whatever it runs.
LOG = "stdout.log"
_READ = 1024 * 1024
# No line of ours is longer; HAProxy's own limit is 1024.
_LINE_MOST = 4096
# Room that lines take which were counted, before it is given back.
_COUNTED_MOST = 16 * 1024**2

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


@dataclass(frozen=True)
class Position:
    """How far a log was read: the file by its inode, and where the next line begins in it."""

    inode: int
    offset: int


def position(session: Session) -> Position:
    """How far the log was read."""
    row = session.get(TrafficLog, TrafficLog.ONLY)
    return Position(row.inode, row.offset) if row else Position(0, 0)


def add(
    database: Database, tally: Mapping[str, Mapping[str, int]], read_to: Position | None = None
) -> None:
    """Adds to the totals of clusters, and notes how far their log was read.

    What was counted for a cluster that is gone is forgotten.
    """
    with database.writing() as session:
        if read_to is not None:
            row = TrafficLog(id=TrafficLog.ONLY, inode=read_to.inode, offset=read_to.offset)
            session.merge(row)
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


@dataclass(frozen=True)
class Reader:
    """Adds what HAProxy writes down to the database; how far it came is known there alone."""

    balancer: Balancer

    def read_all(self) -> None:
        """Adds all that is there."""
        while self.read():
            pass

    def read(self) -> bool:
        """Adds the next piece of the log; whether there was one."""
        try:
            log = open(self.balancer.folder / LOG, "rb")  # noqa: SIM115 (closed below)
        except FileNotFoundError:
            return False
        with log:
            database = self.balancer.vms.database
            found = os.fstat(log.fileno())
            with database.reading() as session:
                before = position(session)
            # Another file, or one that was cut: from its beginning.
            is_same = before.inode == found.st_ino and before.offset <= found.st_size
            at = before.offset if is_same else 0
            tally, end = _counted(log, at)
            if end == at:
                return False
            add(database, tally, Position(found.st_ino, end))
            if end // _COUNTED_MOST > at // _COUNTED_MOST:
                _give_back(self.balancer.folder / LOG, end)
            return True


def _counted(log: BinaryIO, at: int) -> tuple[Tally, int]:
    """What the whole lines from a place on say, one piece of the log at most, and where the next line begins."""
    log.seek(at)
    piece = log.read(_READ)
    whole = piece.rfind(b"\n") + 1
    if not whole and len(piece) > _LINE_MOST:
        whole = len(piece)  # none of ours, and it would stand in the way for ever
    tally: Tally = {}
    for line in piece[:whole].decode(errors="replace").splitlines():
        count(tally, line)
    return tally, at + whole


def _give_back(path: Path, end: int) -> None:
    """Frees the room of lines that were counted; HAProxy goes on writing at the file's end, so none is lost."""
    try:
        proc.run(["fallocate", "--punch-hole", "--offset", "0", "--length", str(end), str(path)])
    except CasemateError as error:  # this file system cannot
        logger.warning("the log of the clusters' traffic keeps growing: %s", error.message)
