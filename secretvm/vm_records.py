"""The rows of VMs as this interface reads and keeps them: each function in its caller's transaction."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from types import SimpleNamespace
from typing import Any

from sqlalchemy import RowMapping, func, select
from sqlalchemy.orm import Session

from models.account import Member, Project, User
from models.port import PortLease
from models.secretvm import SecretVm
from models.vm import Vm
from secretvm import jobs, vm_object, wanted
from secretvm.vm_object import Flags, Row, Team
from secretvm.wanted import Prepared

# The type of the job that holds a VM while it is updated.
UPDATE = "vm.update"

_LONG = ("encrypted_env", "user_config")
_VMS = [column for column in Vm.__table__.c if column.name not in _LONG]
_SECRET = list(SecretVm.__table__.c)
_ROWS = (
    select(*_VMS, *(column.label(f"secret_{column.name}") for column in _SECRET))
    .outerjoin(SecretVm.__table__, SecretVm.__table__.c.vm_id == Vm.__table__.c.id)
    .where(Vm.wished != "removed")
    .order_by(Vm.created_ms.desc(), Vm.id)
)


def read(session: Session, word: Callable[[Any], str], *conditions: Any) -> list[Row]:
    """The VMs that meet some conditions, newest first, none that is on its way out; `word` gives the VMM's status."""
    plain = [_split(row._mapping) for row in session.execute(_ROWS.where(*conditions))]
    ids = [vm.id for vm, _ in plain]
    ports = _ports(session, ids)
    teams = _teams(session, {vm.project_id for vm, _ in plain})
    users = _users(session, {vm.user_id for vm, _ in plain})
    held = jobs.held_vms(session, UPDATE)
    return [
        Row(
            vm,
            secret,
            word(vm),
            vm.id in held,
            ports.get(vm.id, ()),
            teams.get(vm.project_id),
            users.get(vm.user_id),
        )
        for vm, secret in plain
    ]


def prepared(row: Row) -> Prepared:
    """A VM as it is, but for what is sealed or large: empty there means that it stays."""
    secret = row.secret
    return Prepared(
        app_id=row.vm.app_id,
        app_compose=row.vm.compose_file,
        encrypted_env=b"",
        user_config="",
        vm_type=secret.vm_type if secret else "",
        name=vm_object.name_of(row),
        flags=Flags.read(secret.flags) if secret else Flags(),
        registration=secret.registration if secret else None,
        publish=tuple(port.vm_port for port in row.ports if port.own) if secret else (),
    )


def add(session: Session, vm_id: str, prepared: Prepared, cluster: tuple[str, str] | None) -> None:
    """Keeps what was asked of a new VM; a node has the `cluster` (id and name)."""
    cluster_id, cluster_name = cluster or (None, None)
    session.add(
        SecretVm(
            vm_id=vm_id,
            name=prepared.name,
            vm_type=prepared.vm_type,
            domain=prepared.flags.custom_domain,
            flags=wanted.kept_flags(prepared.flags),
            registration=_plain(prepared.registration),
            cluster_id=cluster_id,
            cluster_name=cluster_name,
        )
    )


def change(session: Session, vm_id: str, prepared: Prepared) -> None:
    """Keeps what is asked of a VM now; nothing of one that was made elsewhere."""
    secret = session.get(SecretVm, vm_id)
    if secret is not None:
        secret.name, secret.registration = prepared.name, _plain(prepared.registration)
        secret.flags = wanted.kept_flags(prepared.flags)


def _split(row: RowMapping) -> tuple[SimpleNamespace, SimpleNamespace | None]:
    vm = SimpleNamespace(**{c.name: row[c.name] for c in _VMS})
    secret = SimpleNamespace(**{c.name: row[f"secret_{c.name}"] for c in _SECRET})
    return vm, secret if secret.vm_id is not None else None


def _ports(session: Session, ids: Sequence[str]) -> dict[str, list[Any]]:
    found: dict[str, list[Any]] = {}
    table = PortLease.__table__
    for first in range(0, len(ids), 10_000):  # SQLite takes 32,766 values in one statement
        some = ids[first : first + 10_000]
        asked = select(table).where(table.c.vm_id.in_(some)).order_by(table.c.position)
        for lease in session.execute(asked):
            found.setdefault(lease.vm_id, []).append(lease)
    return found


def _teams(session: Session, project_ids: Collection[str]) -> dict[str, Team]:
    counted = (
        select(Project.id, Project.name, func.count(Member.id))
        .join(Member, Member.project_id == Project.id)
        .where(Project.id.in_(project_ids))
        .group_by(Project.id)
    )
    return {id_: Team(id_, name, count > 1) for id_, name, count in session.execute(counted)}


def _users(session: Session, user_ids: Collection[str | None]) -> dict[str | None, str]:
    asked = select(User.id, User.name).where(User.id.in_([each for each in user_ids if each]))
    return {id_: name for id_, name in session.execute(asked)}


def _plain(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    return None if given is None else dict(given)
