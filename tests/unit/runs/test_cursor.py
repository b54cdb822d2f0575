from __future__ import annotations

import pytest
from sqlalchemy import insert, select

from models.base import Database
from models.event import Event
from runs.cursor import Cursor

# Two events of one moment are ordered by their ids.
ROWS = [("a", 1), ("b", 2), ("c", 2), ("d", 3)]


@pytest.fixture
def ids(database: Database) -> Database:
    with database.writing() as session:
        for row_id, moment in ROWS:
            session.execute(insert(Event).values(id=row_id, message="", recorded_us=moment))
    return database


@pytest.mark.parametrize(
    ("cursor", "found"),
    [
        (Cursor(None, None, 10, False), "dcba"),
        (Cursor(None, None, 10, True), "abcd"),
        (Cursor(None, None, 2, False), "dc"),
        (Cursor(None, None, 0, False), ""),
        (Cursor(2, None, 10, False), "a"),
        (Cursor(2, None, 10, True), "d"),
        (Cursor(2, "c", 10, False), "ba"),
        (Cursor(2, "b", 10, True), "cd"),
        (Cursor(0, None, 10, False), ""),
    ],
)
def test_a_page_begins_behind_its_place(ids: Database, cursor: Cursor, found: str) -> None:
    with ids.reading() as session:
        rows = session.scalars(cursor.page(select(Event.id), Event.recorded_us, Event.id)).all()

    assert "".join(rows) == found


def test_pages_put_together_are_the_whole_list(ids: Database) -> None:
    seen: list[str] = []
    place: tuple[int | None, str | None] = (None, None)
    with ids.reading() as session:
        while rows := session.execute(
            Cursor(*place, 1, False).page(
                select(Event.recorded_us, Event.id), Event.recorded_us, Event.id
            )
        ).all():
            ((moment, row_id),) = rows
            seen.append(row_id)
            place = (moment, row_id)

    assert seen == list("dcba")
