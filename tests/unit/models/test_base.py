from __future__ import annotations

import errno
import multiprocessing
import sqlite3
import threading
from pathlib import Path

import pytest
from sqlalchemy import create_engine, func, select, text
from sqlalchemy.exc import IntegrityError, OperationalError

from models.base import Database, change_watch, disk_trouble
from models.port import PortLease
from models.vm import Vm, VmEvent
from tests.common import rows


def count(database: Database, table: type = Vm) -> int:
    with database.reading() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def lease(vm_id: str, host_port: int, position: int = 0) -> PortLease:
    return PortLease(
        vm_id=vm_id,
        position=position,
        protocol="tcp",
        host_address="127.0.0.1",
        host_port=host_port,
        vm_port=80,
    )


def test_what_a_writing_block_did_is_there_afterwards(database: Database) -> None:
    with database.writing() as session:
        session.add(rows.vm())

    assert count(database) == 1


def test_a_writing_block_that_raises_leaves_nothing(database: Database) -> None:
    with pytest.raises(RuntimeError), database.writing() as session:
        session.add(rows.vm())
        session.flush()
        raise RuntimeError

    assert count(database) == 0


def test_a_reading_block_keeps_nothing(database: Database) -> None:
    with database.reading() as session:
        session.add(rows.vm())
        session.flush()

    assert count(database) == 0


def test_a_reading_block_sees_one_moment(database: Database) -> None:
    with database.reading() as reader:
        assert reader.scalar(select(func.count()).select_from(Vm)) == 0
        with database.writing() as writer:
            writer.add(rows.vm())

        assert reader.scalar(select(func.count()).select_from(Vm)) == 0

    assert count(database) == 1


def test_two_writers_take_turns_and_lose_no_update(database: Database) -> None:
    vm = rows.vm()
    with database.writing() as session:
        session.add(vm)

    def add() -> None:
        for _ in range(10):
            with database.writing() as session:
                found = session.get_one(Vm, vm.id)
                found.restarts += 1

    threads = [threading.Thread(target=add) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    with database.reading() as session:
        assert session.get_one(Vm, vm.id).restarts == 40


def test_writers_of_several_processes_take_turns(database: Database) -> None:
    vm_id = rows.vm().id
    with database.writing() as session:
        session.add(rows.vm(id=vm_id))
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=restart_often, args=(database, vm_id)) for _ in range(3)]

    for child in children:
        child.start()
    restart_often(database, vm_id)
    for child in children:
        child.join(60)

    assert [child.exitcode for child in children] == [0, 0, 0]
    with database.reading() as session:
        assert session.get_one(Vm, vm_id).restarts == 40


def restart_often(database: Database, vm_id: str) -> None:
    for _ in range(10):
        with database.writing() as session:
            session.get_one(Vm, vm_id).restarts += 1


def test_an_answered_commit_survives_a_power_cut(database: Database) -> None:
    with database.reading() as session:
        settings = [
            session.scalar(text(f"PRAGMA {name}"))
            for name in ("journal_mode", "synchronous", "foreign_keys", "busy_timeout")
        ]

    assert settings == ["wal", 2, 1, 10_000]


def test_a_lease_needs_its_vm_and_ends_with_it(database: Database) -> None:
    vm = rows.vm(ports=[lease("", 80), lease("", 81, 1)], events=[])
    with database.writing() as session:
        session.add(vm)
        session.add(VmEvent(vm_id=vm.id, event="boot.progress", body="", timestamp_ms=1))
    with pytest.raises(IntegrityError), database.writing() as session:
        session.add(lease("nobody", 82))

    with database.writing() as session:
        session.delete(session.get_one(Vm, vm.id))

    assert [count(database, table) for table in (Vm, PortLease, VmEvent)] == [0, 0, 0]


def test_rows_deleted_without_the_mapper_take_theirs_along(database: Database) -> None:
    vm = rows.vm(ports=[lease("", 80)])
    with database.writing() as session:
        session.add(vm)

    with database.writing() as session:
        session.execute(text("DELETE FROM vms"))

    assert count(database, PortLease) == 0


def test_a_host_port_belongs_to_one_vm(database: Database) -> None:
    with database.writing() as session:
        session.add(rows.vm(ports=[lease("", 80)]))

    with pytest.raises(IntegrityError, match="UNIQUE"), database.writing() as session:
        session.add(rows.vm(ports=[lease("", 80)]))

    assert count(database) == 1


def test_the_long_parts_of_a_row_are_not_read_by_lists(database: Database) -> None:
    with database.writing() as session:
        session.add(rows.vm(user_config="x" * 100))

    with database.reading() as session:
        vm = session.scalars(select(Vm)).one()
        assert not {"compose_file", "encrypted_env", "user_config"} & set(vm.__dict__)
        assert vm.user_config == "x" * 100


def test_a_change_by_anybody_is_seen_once(database: Database) -> None:
    changed = change_watch(database.path)
    assert changed()  # the first look sees everything
    assert not changed()

    with database.writing() as session:
        session.add(rows.vm())
    assert changed()
    assert not changed()

    with sqlite3.connect(database.path) as other:
        other.execute("UPDATE vms SET name = 'other'")
    other.close()
    assert changed()

    count(database)
    assert not changed()


def test_a_path_with_signs_of_a_url_is_that_path(data_dir: Path, empty_database: Path) -> None:
    folder = data_dir / "a?b#c%20d"
    folder.mkdir()
    path = folder / "casemate.db"
    path.write_bytes(empty_database.read_bytes())

    database = Database(path)
    with database.writing() as session:
        session.add(rows.vm())
    database.engine.dispose()

    with sqlite3.connect(path) as plain:
        assert plain.execute("SELECT count(*) FROM vms").fetchone() == (1,)
    plain.close()
    assert [entry.name for entry in data_dir.iterdir()] == [folder.name]


def test_an_error_shows_no_value_of_a_row(database: Database) -> None:
    vm = rows.vm(user_config="hunter2", encrypted_env=b"hunter2", ports=[lease("", 80)])
    with database.writing() as session:
        session.add(rows.vm(id=vm.id))

    with pytest.raises(IntegrityError) as error, database.writing() as session:
        session.add(vm)

    assert "hunter2" not in str(error.value)


def test_a_writer_that_waits_too_long_is_told(database: Database) -> None:
    blocker = sqlite3.connect(database.path, isolation_level=None)
    blocker.execute("BEGIN IMMEDIATE")
    try:
        with (
            pytest.raises(OperationalError, match="locked"),
            database.engine.connect() as connection,
        ):
            connection.exec_driver_sql("PRAGMA busy_timeout=10")
            connection.execute(text("UPDATE vms SET name = ''"))
    finally:
        blocker.close()
        database.engine.dispose()


def test_a_full_disk_is_known_by_either_name(tmp_path: Path) -> None:
    path = tmp_path / "small.db"
    connection = sqlite3.connect(path)
    connection.execute("CREATE TABLE t (x)")
    connection.execute("PRAGMA max_page_count=2")
    connection.close()
    small = create_engine(f"sqlite:///{path}")

    with small.connect() as session, pytest.raises(OperationalError) as full:
        session.exec_driver_sql("PRAGMA max_page_count=2")
        session.exec_driver_sql("INSERT INTO t VALUES (zeroblob(100000))")

    assert disk_trouble(full.value) == "is full"
    assert disk_trouble(OSError(errno.ENOSPC, "No space left on device")) == "is full"
    assert disk_trouble(OSError(errno.EROFS, "Read-only file system")) == "can only be read"
    assert disk_trouble(OSError(errno.EIO, "Input/output error")) == "is failing"
    assert disk_trouble(OSError(errno.EACCES, "Permission denied")) == ""
    assert disk_trouble(ValueError("disk is full")) == ""
