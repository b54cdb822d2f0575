"""The history of what VMs boot, as whoever writes a VM's row notes it."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.orm import Session, undefer

from models.account import Project
from models.app import Revision
from models.base import Database
from models.vm import Vm
from tests.common import rows
from vmm import revisions
from vmm.revisions import Cause

APP = "ab" * 20


def add(session: Session, cause: Cause | None = None, **fields: Any) -> Vm:
    """A VM of the only project, with its first revision."""
    project = session.scalars(select(Project)).first()
    assert project is not None
    vm = rows.vm(**({"app_id": APP, "project_id": project.id} | fields))
    session.add(vm)
    revisions.note(session, vm, cause or Cause())
    return vm


def history(session: Session) -> list[Revision]:
    """All revisions, the oldest first."""
    session.flush()
    texts = (Revision.compose_file, Revision.encrypted_env, Revision.user_config)
    asked = select(Revision).order_by(Revision.id).options(*map(undefer, texts))
    return list(session.scalars(asked))


def test_a_new_vm_has_one_with_its_exact_texts(database: Database) -> None:
    text = '{"b": 1,\n\n "a": "ü"}  '
    with database.writing() as session:
        vm = add(
            session,
            Cause(None, "trace-1"),
            compose_file=text,
            encrypted_env=b"\x01\x02",
            user_config="{}",
        )
        (made,) = history(session)

        assert (made.operation, made.trace_id, made.app_id) == ("deploy", "trace-1", APP)
        assert (made.vm_id, made.vm_name, made.project_id) == (vm.id, vm.name, vm.project_id)
        assert (made.compose_file, made.encrypted_env, made.user_config) == (
            text,
            b"\x01\x02",
            "{}",
        )
        assert made.compose_hash == hashlib.sha256(text.encode()).hexdigest()
        assert made.key.startswith("rev_")


@pytest.mark.parametrize(
    ("change", "operation"),
    [
        ({"compose_file": "{}"}, "compose_update"),
        ({"encrypted_env": b"x"}, "update_envs"),
        ({"user_config": "x"}, "update_user_config"),
        ({"compose_file": "{}", "encrypted_env": b"x", "user_config": "x"}, "compose_update"),
        ({"encrypted_env": b"x", "user_config": "x"}, "update_envs"),
    ],
)
def test_a_change_is_named_after_what_changes(
    database: Database, change: dict[str, Any], operation: str
) -> None:
    with database.writing() as session:
        vm = add(session)
        for name, value in change.items():
            setattr(vm, name, value)
        revisions.note(session, vm, Cause())

        assert [each.operation for each in history(session)] == ["deploy", operation]


@pytest.mark.parametrize(
    "change", [{}, {"vcpu": 4}, {"wished": "running"}, {"name": "other"}, {"image": "other"}]
)
def test_what_boots_the_same_makes_none(database: Database, change: dict[str, Any]) -> None:
    with database.writing() as session:
        vm = add(session)
        for name, value in change.items():
            setattr(vm, name, value)
        revisions.note(session, vm, Cause(operation="redeploy"))

        assert len(history(session)) == 1


def test_a_change_back_is_a_change_and_its_maker_may_name_it(database: Database) -> None:
    with database.writing() as session:
        vm = add(session)
        first = vm.compose_file
        for text, cause in (("{}", Cause()), (first, Cause(operation="redeploy"))):
            vm.compose_file = text
            revisions.note(session, vm, cause)

        told = history(session)
        assert [each.operation for each in told] == ["deploy", "compose_update", "redeploy"]
        assert told[0].compose_hash == told[2].compose_hash
        assert len({each.key for each in told}) == 3


def test_each_vm_has_a_history_of_its_own(database: Database) -> None:
    with database.writing() as session:
        add(session)
        add(session)

        assert [each.operation for each in history(session)] == ["deploy", "deploy"]


def test_a_history_lives_as_long_as_its_app(database: Database) -> None:
    with database.writing() as session:
        first, second = add(session), add(session)
        other = add(session, app_id="cd" * 20)

        revisions.forget(session, first)
        session.delete(first)
        session.flush()
        assert len(history(session)) == 3

        revisions.forget(session, second)
        session.delete(second)
        assert [each.vm_id for each in history(session)] == [other.id]


def test_of_one_app_in_two_projects_only_the_histories_own_goes(database: Database) -> None:
    with database.writing() as session:
        mine = add(session)
        owner = session.scalars(select(Project)).one().owner_id
        session.add(Project(id="p-2", name="other", owner_id=owner, created_ms=0))
        session.flush()
        theirs = add(session, project_id="p-2")

        revisions.forget(session, mine)

        assert [each.vm_id for each in history(session)] == [theirs.id]
