"""What is let go of after a while: runs that are over, instances and fleets that are gone, events, and logs of no run."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from sqlalchemy import delete, select

from models.base import Database
from models.event import Event
from models.fleet import Fleet, Instance
from models.run import Run, RunJob
from runs import lifecycle
from runs.lifecycle import Kind
from runs.logs import LOGS

DAY_US = 86_400_000_000
# Rows that go in one transaction: others wait for it.
BATCH = 500
# A log may be a little older than the first look at its row.
ORPHAN_S = 3600


def prune(database: Database, data_dir: Path, before_us: int) -> None:
    """Deletes what ended before a moment, and the logs whose runs are not there any more."""
    over = Run.status.not_in(lifecycle.unfinished(Kind.RUN))
    for table, condition in (
        (Run, over & (Run.processed_us < before_us)),
        (Instance, Instance.finished_us < before_us),
        (Fleet, Fleet.deleted.is_(True) & (Fleet.created_us < before_us) & ~Fleet.instances.any()),
        (Event, Event.recorded_us < before_us),
    ):
        while _delete_some(database, table, condition) == BATCH:
            pass
    for folder in (data_dir / LOGS).glob("??"):
        _sweep(database, folder)


def _delete_some(database: Database, table: Any, condition: Any) -> int:
    with database.writing() as session:
        ids = session.scalars(select(table.id).where(condition).limit(BATCH)).all()
        session.execute(delete(table).where(table.id.in_(ids)))
    return len(ids)


def _sweep(database: Database, folder: Path) -> None:
    old = [path for path in folder.iterdir() if time.time() - path.stat().st_mtime > ORPHAN_S]
    with database.reading() as session:
        asked = select(RunJob.id).where(RunJob.id.in_({path.stem for path in old}))
        known = set(session.scalars(asked))
    for path in old:
        if path.stem not in known:
            path.unlink(missing_ok=True)
