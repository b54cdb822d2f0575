"""What projects have left to spend, and what their VMs cost while they run (`[billing]`; off by default).

Balances are whole millionths of a US dollar, so that nothing is lost to rounding between two looks.
"""

from __future__ import annotations

import time

from sqlalchemy import func, select, update
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.orm import Session

from core.config import Config
from core.config_secretvm import VmTypeConfig
from core.errors import PaymentRequired
from models.base import Database
from models.secretvm import Balance, SecretVm
from models.vm import Vm
from secretvm import sizes

MINOR = 1_000_000
HOUR_MS = 3_600_000


def balance(session: Session, config: Config, project_id: str) -> int:
    """What a project has left; one that never had a balance has the credit of the configuration."""
    kept = session.scalar(select(Balance.minor).where(Balance.project_id == project_id))
    return round(config.billing.credit * MINOR) if kept is None else kept


def set_balance(session: Session, project_id: str, minor: int) -> None:
    """Gives a project a balance instead of the one it has."""
    row = insert(Balance).values(project_id=project_id, minor=minor)
    session.execute(row.on_conflict_do_update(index_elements=["project_id"], set_={"minor": minor}))


def check(session: Session, config: Config, project_id: str, size: VmTypeConfig) -> None:
    """PaymentRequired unless the balance covers an hour of what runs and of one more VM."""
    if not config.billing.enabled:
        return
    hourly = _running(session, config, project_id) + _hourly(config, size)
    left = balance(session, config, project_id)
    if left < hourly:
        raise PaymentRequired(
            f"insufficient balance: {left / MINOR:.2f} USD do not cover one hour, which costs "
            f"{hourly / MINOR:.2f} USD with what runs already"
        )


def charge(database: Database, config: Config) -> None:
    """Takes from each project what its VMs have cost since they were paid for last."""
    now = time.time_ns() // 1_000_000
    with database.writing() as session:
        running = select(SecretVm, Vm).join(Vm, Vm.id == SecretVm.vm_id)
        for secret, vm in session.execute(running.where(Vm.observed == "alive")).all():
            since = max(secret.paid_ms or 0, vm.started_ms or now)
            cost = _price(config, secret.vm_type) * (now - since) // HOUR_MS
            if cost > 0:
                left = balance(session, config, vm.project_id)
                set_balance(session, vm.project_id, left - cost)
                session.execute(update(SecretVm).where(SecretVm.vm_id == vm.id).values(paid_ms=now))


def _running(session: Session, config: Config, project_id: str) -> int:
    counted = (
        select(SecretVm.vm_type, func.count())
        .join(Vm, Vm.id == SecretVm.vm_id)
        .where(Vm.project_id == project_id, Vm.wished == "running")
        .group_by(SecretVm.vm_type)
    )
    return sum(_price(config, type_) * count for type_, count in session.execute(counted))


def _price(config: Config, type_id: str) -> int:
    known = {each.id: each for each in config.secretvm.vm_types}
    return _hourly(config, known[type_id]) if type_id in known else 0


def _hourly(config: Config, size: VmTypeConfig) -> int:
    return round(sizes.price(config, size) * MINOR)
