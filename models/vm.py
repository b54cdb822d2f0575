"""A VM: what its owner wants, what the host last saw, and everything needed to boot it again."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, LargeBinary, String, Text, insert
from sqlalchemy.engine.interfaces import ExecutionContext
from sqlalchemy.orm import Mapped, deferred, mapped_column, relationship

from models.account import MAIN_ID
from models.base import Base
from models.port import PortLease


class VmNumber(Base):
    """Where VMs draw their numbers: SQLite never gives one out twice, also after its row is gone."""

    __tablename__ = "vm_numbers"
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012 (SQLAlchemy's own form)

    number: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)


def _draw_number(context: ExecutionContext) -> int:
    """The next number, in the transaction that inserts the VM."""
    drawn = context.connection.execute(insert(VmNumber))
    return int(drawn.lastrowid)


class Vm(Base):
    """One VM; `wished` and `observed` take the values of vmm/lifecycle.py."""

    __tablename__ = "vms"
    __table_args__ = (Index(None, "created_ms"), Index(None, "app_id"))

    id: Mapped[str] = mapped_column(String(64), primary_key=True)
    name: Mapped[str] = mapped_column(String(64), index=True)
    app_id: Mapped[str] = mapped_column(String(40))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"), index=True, default=MAIN_ID)
    # Who made it; None once that user is gone, and for those that nobody in particular made.
    user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id"), index=True)
    # Small, its own for life and no other VM's later: some clients know VMs by a number.
    number: Mapped[int] = mapped_column(index=True, unique=True, default=_draw_number)
    image: Mapped[str] = mapped_column(String(64))
    image_version: Mapped[str] = mapped_column(String(64))
    vcpu: Mapped[int]
    memory_mb: Mapped[int]
    disk_gb: Mapped[int]
    no_tee: Mapped[bool]
    # None: a real TEE, or none at all with no_tee; else the platform that is simulated.
    simulated_tee: Mapped[str | None] = mapped_column(String(32))
    hugepages: Mapped[bool]
    pin_numa: Mapped[bool]
    # Lists and small messages as they were given: kms_urls, gateway_urls, gpus, networks.
    options: Mapped[dict[str, Any]] = mapped_column(JSON)

    # The exact text that is hashed and measured, and the opaque parts: not read by lists.
    compose_file: Mapped[str] = deferred(mapped_column(Text, nullable=False))
    encrypted_env: Mapped[bytes] = deferred(mapped_column(LargeBinary, nullable=False))
    user_config: Mapped[str] = deferred(mapped_column(Text, nullable=False))

    wished: Mapped[str] = mapped_column(String(16), index=True)
    observed: Mapped[str] = mapped_column(String(16))
    # The vsock number, its own for life; a VM older than this column gets one at its next start.
    cid: Mapped[int | None] = mapped_column(index=True, unique=True)
    # Identity of the process, from its runner: the number alone may be used again.
    pid: Mapped[int | None]
    pid_start: Mapped[int | None]
    accel: Mapped[str | None] = mapped_column(String(8))

    # Since when QEMU does not answer its monitor; None while it does.
    silent_ms: Mapped[int | None]

    created_ms: Mapped[int]
    started_ms: Mapped[int | None]
    stopped_ms: Mapped[int | None]

    restarts: Mapped[int] = mapped_column(default=0)
    next_restart_ms: Mapped[int | None]

    # Told by the guest.
    instance_id: Mapped[str | None] = mapped_column(String(40))
    boot_progress: Mapped[str] = mapped_column(Text, default="")
    boot_error: Mapped[str] = mapped_column(Text, default="")
    shutdown_progress: Mapped[str] = mapped_column(Text, default="")

    ports: Mapped[list[PortLease]] = relationship(
        cascade="all, delete-orphan", order_by=PortLease.position, lazy="selectin"
    )
    events: Mapped[list[VmEvent]] = relationship(
        cascade="all, delete-orphan", order_by="VmEvent.id", lazy="selectin"
    )


class VmEvent(Base):
    """Something that happened to a VM: told by its guest, or seen by the service (`vmm.*`)."""

    __tablename__ = "vm_events"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), index=True)
    event: Mapped[str] = mapped_column(Text)
    body: Mapped[str] = mapped_column(Text)
    timestamp_ms: Mapped[int]
