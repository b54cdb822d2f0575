"""The history of what VMs boot: a row each time the text, the sealed variables or the user config of one change.

Whoever writes a VM's row calls `note` in the same transaction, so that no surface has to remember it.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass

from sqlalchemy import delete, select
from sqlalchemy.orm import Session, undefer

from models.app import Revision
from models.vm import Vm
from vmm.records import now_ms


@dataclass(frozen=True)
class Cause:
    """Who changes a VM, under which number the caller may follow it, and what they call it."""

    user_id: str | None = None
    trace_id: str | None = None
    operation: str = ""  # "": named after what changes


def note(session: Session, vm: Vm, cause: Cause) -> None:
    """Adds a revision if the VM will boot something else than its newest one says."""
    session.flush()
    operation = _operation(_newest(session, vm.id), vm)
    if not operation:
        return
    session.add(
        Revision(
            key=f"rev_{secrets.token_hex(8)}",
            app_id=vm.app_id,
            vm_id=vm.id,
            vm_name=vm.name,
            project_id=vm.project_id,
            user_id=cause.user_id,
            operation=cause.operation or operation,
            trace_id=cause.trace_id,
            compose_hash=hashlib.sha256(vm.compose_file.encode()).hexdigest(),
            created_ms=now_ms(),
            compose_file=vm.compose_file,
            encrypted_env=vm.encrypted_env,
            user_config=vm.user_config,
        )
    )


def forget(session: Session, vm: Vm) -> None:
    """Drops the history of an app whose last VM goes."""
    others = select(Vm.id).where(
        Vm.app_id == vm.app_id, Vm.project_id == vm.project_id, Vm.id != vm.id
    )
    if session.scalar(others.limit(1)) is None:
        session.execute(
            delete(Revision)
            .where(Revision.app_id == vm.app_id, Revision.project_id == vm.project_id)
            .execution_options(synchronize_session=False)
        )


def _newest(session: Session, vm_id: str) -> Revision | None:
    return session.scalar(
        select(Revision)
        .where(Revision.vm_id == vm_id)
        .order_by(Revision.id.desc())
        .limit(1)
        .options(
            undefer(Revision.compose_file),
            undefer(Revision.encrypted_env),
            undefer(Revision.user_config),
        )
    )


def _operation(before: Revision | None, vm: Vm) -> str:
    """The name of the change, "" when there is none."""
    if before is None or before.app_id != vm.app_id:
        return "deploy"
    if before.compose_file != vm.compose_file:
        return "compose_update"
    if before.encrypted_env != vm.encrypted_env:
        return "update_envs"
    return "" if before.user_config == vm.user_config else "update_user_config"
