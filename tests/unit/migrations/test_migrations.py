from __future__ import annotations

import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.runtime.migration import MigrationContext
from sqlalchemy import Engine, event, select
from sqlalchemy.engine import Connection
from sqlalchemy.exc import PendingRollbackError
from sqlalchemy.orm import undefer

import migrations
from core.errors import Conflict
from models.base import Base, Database
from models.vm import Vm
from tests.common import rows

FIRST_SCHEMA = Path(__file__).with_name("schema_0001.sql")


def tables(path: Path) -> set[str]:
    with sqlite3.connect(path) as plain:
        found = {row[0] for row in plain.execute("SELECT name FROM sqlite_master")}
    plain.close()
    return found


def revision(path: Path) -> list[tuple[str]]:
    with sqlite3.connect(path) as plain:
        found: list[tuple[str]] = plain.execute("SELECT * FROM alembic_version").fetchall()
    plain.close()
    return found


def test_a_database_is_made_with_the_tables_of_the_models(data_dir: Path) -> None:
    path = data_dir / "deeper/casemate.db"

    migrations.upgrade(path)

    database = Database(path)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    database.engine.dispose()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700


def test_a_migrated_database_needs_no_change_of_mode_by_its_users(data_dir: Path) -> None:
    path = data_dir / "casemate.db"
    migrations.upgrade(path)

    reader = sqlite3.connect(path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT * FROM vms")
    database = Database(path)
    with database.writing() as session:
        session.add(rows.vm())
    database.engine.dispose()
    reader.close()


def test_a_second_upgrade_changes_nothing(data_dir: Path) -> None:
    path = data_dir / "casemate.db"
    migrations.upgrade(path)
    before = path.read_bytes()

    migrations.upgrade(path)

    assert path.read_bytes() == before


def test_services_that_start_at_once_migrate_once(data_dir: Path) -> None:
    path = data_dir / "casemate.db"

    # alembic keeps its context in globals, so threads of one process must take turns too.
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(migrations.upgrade, path) for _ in range(4)]:
            done.result()

    assert "vms" in tables(path)


def test_the_vms_of_the_first_release_are_kept(data_dir: Path) -> None:
    path = data_dir / "casemate.db"
    with sqlite3.connect(path) as plain:
        plain.executescript(FIRST_SCHEMA.read_text())
    plain.close()

    migrations.upgrade(path)

    database = Database(path)
    with database.engine.connect() as connection:
        assert compare_metadata(MigrationContext.configure(connection), Base.metadata) == []
    with database.reading() as session:
        vms = session.scalars(select(Vm).order_by(Vm.created_ms)).all()
        assert [(vm.name, vm.wished, vm.observed) for vm in vms] == [
            ("first", "stopped", "absent"),
            ("second", "shutdown", "absent"),
        ]
        assert {vm.encrypted_env for vm in session.scalars(select(Vm).options(undefer("*")))} == {
            b"\x00\xff"
        }
        assert [vm.ports[0].host_port for vm in vms] == [18080, 18081]
        assert [vm.events[0].event for vm in vms] == ["vmm.stop"] * 2
    database.engine.dispose()


def test_a_database_of_a_newer_release_is_refused(data_dir: Path) -> None:
    path = data_dir / "casemate.db"
    migrations.upgrade(path)
    with sqlite3.connect(path) as plain:
        plain.execute("UPDATE alembic_version SET version_num = '9999'")
    plain.close()

    with pytest.raises(Conflict, match=r"newer release of Casemate \(schema 9999\)"):
        migrations.upgrade(path)

    assert revision(path) == [("9999",)]


def test_a_migration_cut_off_at_any_statement_is_made_whole_by_the_next_one(
    data_dir: Path,
) -> None:
    class Cut(BaseException):
        pass

    whole = data_dir / "whole.db"
    migrations.upgrade(whole)
    cuts = 0
    while True:
        path = data_dir / f"cut-{cuts}.db"
        left = [cuts]

        def cut(
            connection: Connection,
            cursor: object,
            statement: str,
            *_: object,
            left: list[int] = left,
        ) -> None:
            if statement.lstrip().upper().startswith(("CREATE", "INSERT", "UPDATE")):
                if left[0] == 0:
                    raise Cut
                left[0] -= 1

        event.listen(Engine, "before_cursor_execute", cut)
        try:
            migrations.upgrade(path)
            break
        # alembic tidies up after a table that it builds anew, in a transaction that is over by then.
        except (Cut, PendingRollbackError):
            cuts += 1
        finally:
            event.remove(Engine, "before_cursor_execute", cut)
        # Nothing of it, or all of it: then the next start goes on.
        migrations.upgrade(path)
        assert tables(path) == tables(whole)

    assert cuts > 5


def test_a_path_with_signs_of_a_url_is_that_path(data_dir: Path) -> None:
    path = data_dir / "a?b#c%20d/casemate.db"

    migrations.upgrade(path)

    assert "vms" in tables(path)
    assert [entry.name for entry in data_dir.iterdir()] == ["a?b#c%20d"]
