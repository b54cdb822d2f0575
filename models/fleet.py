"""Fleets and their instances, each of which is one VM."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.account import Project
from models.base import Base


class Fleet(Base):
    """A pool of instances; `status` takes the values of runs/lifecycle.py, times are microseconds."""

    __tablename__ = "fleets"
    __table_args__ = (
        # A name is free again when its fleet is gone.
        Index(
            "ix_fleets_name", "project_id", "name", unique=True, sqlite_where=text("NOT deleted")
        ),
        Index(None, "created_us"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    user_id: Mapped[str | None] = mapped_column(ForeignKey("users.id", ondelete="SET NULL"))
    name: Mapped[str] = mapped_column(String(41))
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    status: Mapped[str] = mapped_column(String(16))
    status_message: Mapped[str | None] = mapped_column(Text)
    deleted: Mapped[bool] = mapped_column(default=False)
    created_us: Mapped[int]

    project: Mapped[Project] = relationship(lazy="joined", innerjoin=True)
    # Those that are not gone: the records of the others stay for the timeline.
    instances: Mapped[list[Instance]] = relationship(
        primaryjoin="and_(Fleet.id == Instance.fleet_id, Instance.finished_us.is_(None))",
        order_by="Instance.num",
        lazy="selectin",
        viewonly=True,
    )


class Instance(Base):
    """One VM of a fleet; only one user's jobs ever run in it."""

    __tablename__ = "instances"
    __table_args__ = (
        Index(
            "ix_instances_num",
            "fleet_id",
            "num",
            unique=True,
            sqlite_where=text("finished_us IS NULL"),
        ),
        Index(None, "status"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    fleet_id: Mapped[str] = mapped_column(ForeignKey("fleets.id", ondelete="CASCADE"), index=True)
    # Whose jobs it takes; None as long as it has taken none.  No foreign key: what a user who is gone left in the VM
    # is for nobody else.
    user_id: Mapped[str | None] = mapped_column(String(36))
    num: Mapped[int]
    name: Mapped[str] = mapped_column(String(60))
    # The size: name, cpu, memory_mib, disk_gb, price.
    size: Mapped[dict[str, Any]] = mapped_column(JSON)
    status: Mapped[str] = mapped_column(String(16))
    # No foreign key: the VM goes, the record of the instance stays.
    vm_id: Mapped[str | None] = mapped_column(String(64), index=True)
    unreachable: Mapped[bool] = mapped_column(default=False)
    termination_reason: Mapped[str | None] = mapped_column(String(40))
    termination_message: Mapped[str | None] = mapped_column(Text)
    # Ends it when it was idle for so long; None: the fleet's word counts.
    idle_duration_s: Mapped[int | None]
    created_us: Mapped[int]
    idle_since_us: Mapped[int | None]
    finished_us: Mapped[int | None]

    fleet: Mapped[Fleet] = relationship(lazy="joined", innerjoin=True)
