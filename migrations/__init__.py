"""Brings the database to this release's schema, once, under a file lock."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path

from alembic import command
from alembic.config import Config
from alembic.runtime.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine

from core import faults
from core.errors import Conflict
from core.files import locked
from models.base import file_url


def upgrade(database: Path) -> None:
    """Migrates the SQLite file at `database`, making it when absent.

    Raises Conflict when the file comes from a newer release than this one.
    """
    database.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).parent).replace("%", "%%"))
    config.attributes["url"] = file_url(database)
    with locked(database.with_suffix(".migrate.lock")):
        _refuse_newer(database, config)
        command.upgrade(config, "head")
        faults.point("migration.done")
        # The file remembers it.  Connections that change to it at the same time refuse each other.
        with contextlib.closing(sqlite3.connect(database)) as connection:
            connection.execute("PRAGMA journal_mode=WAL")
        database.chmod(0o600)


def _refuse_newer(database: Path, config: Config) -> None:
    known = {script.revision for script in ScriptDirectory.from_config(config).walk_revisions()}
    engine = create_engine(file_url(database))
    with engine.connect() as connection:
        current = MigrationContext.configure(connection).get_current_revision()
    engine.dispose()
    if current is not None and current not in known:
        raise Conflict(
            f"{database} was written by a newer release of Casemate (schema {current}); "
            "run that release, or restore a backup made before it"
        )
