"""The database: one SQLite file, its pragmas, and sessions that say whether they write."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

from sqlalchemy import URL, Connection, Delete, MetaData, Update, create_engine, event
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

_TROUBLE = {
    errno.ENOSPC: "is full",
    errno.EDQUOT: "is full",
    errno.EROFS: "can only be read",
    errno.EIO: "is failing",
}
_TROUBLE_OF_SQLITE = (
    ("disk is full", "is full"),
    ("readonly database", "can only be read"),
    ("disk I/O error", "is failing"),
)


class Base(DeclarativeBase):
    """The root of all tables; constraint names are fixed so that migrations can name them."""

    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(table_name)s_%(column_0_N_name)s",
            "uq": "uq_%(table_name)s_%(column_0_N_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_N_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


def file_url(path: Path) -> URL:
    """The address of a SQLite file; a text would take `?` and `%` in the path for its own."""
    return URL.create("sqlite", database=str(path))


class Database:
    """Sessions on one SQLite file, safe to use from many threads and processes."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.engine = create_engine(
            file_url(path),
            pool_size=8,
            max_overflow=120,
            hide_parameters=True,  # an error's text goes to the log, a VM's secrets do not
        )
        event.listen(self.engine, "connect", _set_pragmas)
        event.listen(self.engine, "begin", _begin)
        self._reading = sessionmaker(self.engine, expire_on_commit=False)
        self._writing = sessionmaker(
            self.engine.execution_options(casemate_writes=True), expire_on_commit=False
        )
        # A child must not speak on its parent's connections.
        os.register_at_fork(after_in_child=lambda: self.engine.dispose(close=False))

    @contextlib.contextmanager
    def reading(self) -> Iterator[Session]:
        """A session that sees one moment of the database and changes nothing."""
        with self._reading() as session:
            yield session

    @contextlib.contextmanager
    def writing(self) -> Iterator[Session]:
        """A session that commits at the end of the block, or leaves nothing when the block raises.

        It takes SQLite's write lock at its start, so what it reads stays true until it commits.
        """
        with self._writing() as session, session.begin():
            yield session


def disk_trouble(error: BaseException) -> str:
    """What an error says of the disk, be it SQLite's or the system's: that it `is full`, say; "" if nothing."""
    if isinstance(error, OperationalError):
        said = str(error.orig)
        return next((trouble for words, trouble in _TROUBLE_OF_SQLITE if words in said), "")
    return _TROUBLE.get(error.errno or 0, "") if isinstance(error, OSError) else ""


def change_watch(path: Path) -> Callable[[], bool]:
    """A question for one thread: has any process committed to the database since it was last asked?

    Costs some microseconds (SQLite's data_version), so that a sweep can look often and read seldom.
    """
    connection = sqlite3.connect(path, isolation_level=None)
    last = -1

    def changed() -> bool:
        nonlocal last
        before, last = last, connection.execute("PRAGMA data_version").fetchone()[0]
        return bool(last != before)

    return changed


def _set_pragmas(connection: sqlite3.Connection, record: object) -> None:
    # The driver must not open transactions by itself: _begin says which kind.
    connection.isolation_level = None
    cursor = connection.cursor()
    # Waiting comes first: the change to WAL itself can meet a busy database.
    cursor.execute("PRAGMA busy_timeout=10000")
    cursor.execute("PRAGMA journal_mode=WAL")
    # FULL: an answered commit survives a power cut; NORMAL may lose the last ones, and a lost row is a
    # running VM that the record denies.
    cursor.execute("PRAGMA synchronous=FULL")
    cursor.execute("PRAGMA foreign_keys=ON")
    cursor.close()


def _begin(connection: Connection) -> None:
    # A transaction that reads and later writes fails at once when another wrote between: a writer
    # therefore takes the write lock at its first statement, and waits for it.
    writes = connection.get_execution_options().get("casemate_writes", False)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def met_row(session: Session, asked: Update | Delete) -> bool:
    """Whether an UPDATE or a DELETE with a condition met a row: False when somebody was faster."""
    done = session.execute(asked.execution_options(synchronize_session=False))
    return bool(done.rowcount)  # type: ignore[attr-defined] # what execute() of these two returns
