"""What the apps interface reads and writes in the database: each function in its caller's transaction."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence
from typing import Any

from sqlalchemy import Delete, Update, bindparam, delete, func, or_, select, update
from sqlalchemy.orm import Session, undefer

from apps.refusals import HASH_UNKNOWN, coded
from core.errors import NotFound
from models.account import Project, User
from models.app import CvmProfile, Provision, Revision
from models.base import met_row
from models.port import PortLease
from models.vm import Vm

# apps.md section 5: until committed, but no longer.
KEPT_S = 14 * 24 * 3600

_VMS, _PROFILES = Vm.__table__, CvmProfile.__table__
_PROFILE = [column for column in _PROFILES.c if column.name != "vm_id"]
_LONG = ("compose_file", "encrypted_env", "user_config")
_JOINED = _VMS.outerjoin(_PROFILES, _VMS.c.id == _PROFILES.c.vm_id)
# Built once: putting a statement together takes longer than SQLite needs to answer it.
_BRIEF = (
    select(*(column for column in _VMS.c if column.name not in _LONG), *_PROFILE)
    .select_from(_JOINED)
    .where(_VMS.c.wished != "removed")
    .order_by(_VMS.c.created_ms, _VMS.c.number)
)
_OF_PROJECTS = _BRIEF.where(_VMS.c.project_id.in_(bindparam("projects", expanding=True)))
_WHOLE = select(*_VMS.c, *_PROFILE).select_from(_JOINED)
_WHOLE_OF = _WHOLE.where(_VMS.c.id.in_(bindparam("ids", expanding=True)))


def now_ms() -> int:
    """Milliseconds since 1970."""
    return time.time_ns() // 1_000_000


# VMs ---------------------------------------------------------------------------------------------


def visible(
    session: Session, projects: Collection[str] | None, app_id: str | None = None
) -> Sequence[Any]:
    """The VMs of some projects (None: of all) without their long texts, oldest first; none that is going.

    With `app_id` those of that app.
    """
    asked = _BRIEF if projects is None else _OF_PROJECTS
    given: dict[str, Any] = {} if projects is None else {"projects": list(projects)}
    if app_id is not None:
        asked = asked.where(_VMS.c.app_id == app_id)
    return session.execute(asked, given).all()


def whole(session: Session, ids: Collection[str]) -> dict[str, Any]:
    """The rows of some VMs with everything, by id."""
    return {row.id: row for row in session.execute(_WHOLE_OF, {"ids": list(ids)})}


def used(session: Session) -> dict[str, int]:
    """How many VMs there are, and what those take that run."""
    running = Vm.observed != "absent"
    asked = select(
        func.count(),
        func.coalesce(func.sum(Vm.vcpu).filter(running), 0),
        func.coalesce(func.sum(Vm.memory_mb).filter(running), 0),
    )
    count, vcpu, memory_mb = session.execute(asked.select_from(Vm)).one()
    return {"vm_slots": count, "vcpu": vcpu, "memory_mb": memory_mb}


def name_taken(session: Session, project_id: str, name: str) -> bool:
    """Whether a VM of a project has a name."""
    asked = select(Vm.id).where(
        Vm.project_id == project_id, Vm.name == name, Vm.wished != "removed"
    )
    return session.scalar(asked.limit(1)) is not None


def ports(session: Session, ids: Collection[str]) -> dict[str, list[PortLease]]:
    """The host ports that the service led to VMs of itself, by VM."""
    asked = select(PortLease).where(PortLease.vm_id.in_(ids), PortLease.own)
    found: dict[str, list[PortLease]] = {}
    for lease in session.scalars(asked.order_by(PortLease.position)):
        found.setdefault(str(lease.vm_id), []).append(lease)
    return found


def projects_with(session: Session, app_id: str) -> set[str]:
    """The projects that have VMs of an app."""
    asked = select(Vm.project_id).where(Vm.app_id == app_id, Vm.wished != "removed")
    return set(session.scalars(asked))


def projects_named(session: Session, ids: Collection[str]) -> dict[str, str]:
    """The names of projects by id."""
    found = session.execute(select(Project.id, Project.name).where(Project.id.in_(ids)))
    return {row.id: row.name for row in found}


def users_named(session: Session, ids: Collection[str | None]) -> dict[str, str]:
    """The names of users by id."""
    found = session.execute(select(User.id, User.name).where(User.id.in_(ids)))
    return {row.id: row.name for row in found}


def note_made(session: Session, vm_id: str, profile: CvmProfile, promise: Provision | None) -> None:
    """Writes what a VM that is being made was asked to be, and takes the promise that it keeps, if any.

    A promise waits again when the VM that took it is gone.
    """
    if promise is not None:
        _claim(session, update(Provision).where(*_is(promise), _free()).values(taken_by=vm_id))
    profile.vm_id = vm_id
    session.merge(profile)


def note_changed(
    session: Session, vm_id: str, promise: Provision | None, *, has_new_size: bool
) -> None:
    """Takes the update that a VM is being given, if it waited; with a new size the name of the old one goes."""
    if promise is not None:
        _claim(session, delete(Provision).where(*_is(promise)))
    if has_new_size:
        session.execute(
            update(CvmProfile)
            .where(CvmProfile.vm_id == vm_id)
            .values(instance_type=None)
            .execution_options(synchronize_session=False)
        )


# Revisions ---------------------------------------------------------------------------------------


def changed(session: Session, ids: Collection[str]) -> dict[str, int]:
    """When what VMs boot changed last, by VM."""
    newest = func.max(Revision.created_ms)
    asked = select(Revision.vm_id, newest).where(Revision.vm_id.in_(ids)).group_by(Revision.vm_id)
    return {vm_id: at for vm_id, at in session.execute(asked)}


def revisions(
    session: Session, app_id: str, projects: Collection[str], first: int, count: int
) -> tuple[int, Sequence[Revision]]:
    """How many revisions an app has in some projects, and `count` of them from `first` on, newest first."""
    mine = (Revision.app_id == app_id, Revision.project_id.in_(projects))
    total = session.scalar(select(func.count()).select_from(Revision).where(*mine)) or 0
    asked = select(Revision).where(*mine).order_by(Revision.id.desc())
    return total, session.scalars(asked.offset(min(first, 2**62)).limit(count)).all()


def revision(session: Session, app_id: str, projects: Collection[str], key: str) -> Revision | None:
    """One revision of an app with its texts, or None."""
    asked = (
        select(Revision)
        .where(Revision.key == key, Revision.app_id == app_id, Revision.project_id.in_(projects))
        .options(
            undefer(Revision.compose_file),
            undefer(Revision.encrypted_env),
            undefer(Revision.user_config),
        )
    )
    return session.scalar(asked)


# Provisions --------------------------------------------------------------------------------------


def add_provision(session: Session, provision: Provision) -> None:
    """Keeps what was promised, and drops what nobody came for."""
    oldest = now_ms() - KEPT_S * 1000
    session.execute(
        delete(Provision)
        .where(or_(Provision.created_ms < oldest, *_same_vm(provision)))
        .execution_options(synchronize_session=False)
    )
    session.add(provision)


def _same_vm(provision: Provision) -> list[Any]:
    return [] if provision.vm_id is None else [Provision.vm_id == provision.vm_id]


def promised(session: Session, projects: Collection[str], compose_hash: str) -> Sequence[Provision]:
    """The deployments that wait under a compose hash in some projects, the newest first."""
    oldest = now_ms() - KEPT_S * 1000
    asked = (
        select(Provision)
        .where(
            Provision.project_id.in_(projects),
            Provision.compose_hash == compose_hash,
            Provision.vm_id.is_(None),
            Provision.created_ms >= oldest,
            _free(),
        )
        .order_by(Provision.id.desc())
        .options(undefer(Provision.compose_file))
    )
    return session.scalars(asked).all()


def prepared(session: Session, vm_id: str) -> Provision | None:
    """The update that waits for a VM, or None."""
    oldest = now_ms() - KEPT_S * 1000
    asked = select(Provision).where(Provision.vm_id == vm_id, Provision.created_ms >= oldest)
    return session.scalar(asked.options(undefer(Provision.compose_file)))


def drop(session: Session, promise: Provision) -> None:
    """Drops a promise whose VM is there."""
    session.execute(
        delete(Provision).where(*_is(promise)).execution_options(synchronize_session=False)
    )


def _is(promise: Provision) -> list[Any]:
    """This very promise: the number of one that is gone may be another one's."""
    return [Provision.id == promise.id, Provision.created_ms == promise.created_ms]


def _free() -> Any:
    there = select(Vm.id).where(Vm.wished != "removed")
    return or_(Provision.taken_by.is_(None), Provision.taken_by.not_in(there))


def _claim(session: Session, asked: Update | Delete) -> None:
    """Takes a promise for one caller; NotFound with the interface's code when another one was faster."""
    if not met_row(session, asked):
        raise coded(
            NotFound("compose_hash: what waited under this hash was committed by somebody else"),
            HASH_UNKNOWN,
            suggestion="ask anew and commit what that answers",
        )
