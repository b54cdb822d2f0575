"""The cost of a page of the timeline."""

from __future__ import annotations

from typing import Any

import pytest
from sqlalchemy import insert
from sqlalchemy.orm import Session

from models.base import Database
from models.event import Event, EventTarget
from runs import timeline
from runs.timeline import Query

MANY = 20_000
# Of SQLite's virtual machine, in thousands: a page that looked at all events would take many times as many.
STEPS = 50


@pytest.fixture
def crowded(database: Database) -> Database:
    events = [{"id": f"e{n:07}", "message": "m", "recorded_us": n} for n in range(MANY)]
    targets = [
        {"event_id": f"e{n:07}", "position": 0, "type": "job", "target_id": f"t{n // 20}", "name": "n",
         "within_id": f"r{n // 40}", "project_id": "p", "recorded_us": n}
        for n in range(MANY)
    ]  # fmt: skip
    with database.writing() as session:
        session.execute(insert(Event), events)
        session.execute(insert(EventTarget), targets)
    return database


@pytest.mark.parametrize(
    ("query", "seen", "count"),
    [
        (Query(), None, 100),
        (Query(), ["p"], 100),
        (Query(within_type="project", within_ids=["p"]), ["p"], 100),
        (Query(target_type="job", target_ids=["t5"]), ["p"], 20),
        (Query(within_type="run", within_ids=["r5"]), ["p"], 40),
    ],
)
def test_a_page_does_not_look_at_all_events(
    crowded: Database, query: Query, seen: list[str] | None, count: int
) -> None:
    ticks: list[int] = []
    with crowded.reading() as session:
        _connection(session).set_progress_handler(lambda: ticks.append(1), 1000)
        found = timeline.read(session, query, seen, "user")
        _connection(session).set_progress_handler(None, 0)

    assert len(found) == count
    assert len(ticks) < STEPS


def _connection(session: Session) -> Any:
    return session.connection().connection.driver_connection
