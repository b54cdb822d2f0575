"""The timeline: what happened to projects, users, fleets, instances, runs and jobs, and who did it."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base


class Event(Base):
    """One thing that happened; names are kept as they were then."""

    __tablename__ = "events"
    __table_args__ = (Index(None, "recorded_us", "id"),)

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    message: Mapped[str] = mapped_column(Text)
    recorded_us: Mapped[int]
    # None: the service itself.
    actor_id: Mapped[str | None] = mapped_column(String(36), index=True)
    actor_name: Mapped[str | None] = mapped_column(String(60))

    targets: Mapped[list[EventTarget]] = relationship(
        order_by="EventTarget.position", lazy="selectin", cascade="all, delete-orphan"
    )


class EventTarget(Base):
    """What an event is about."""

    __tablename__ = "event_targets"
    __table_args__ = (
        Index(None, "target_id", "recorded_us"),
        Index(None, "within_id", "recorded_us"),
        Index(None, "project_id", "recorded_us"),
    )

    event_id: Mapped[str] = mapped_column(
        ForeignKey("events.id", ondelete="CASCADE"), primary_key=True
    )
    position: Mapped[int] = mapped_column(primary_key=True)
    type: Mapped[str] = mapped_column(String(16))
    target_id: Mapped[str] = mapped_column(String(36))
    name: Mapped[str] = mapped_column(String(64))
    # The run of a job, the fleet of an instance.
    within_id: Mapped[str | None] = mapped_column(String(36))
    # No foreign keys: the timeline outlives what it tells of.
    project_id: Mapped[str | None] = mapped_column(String(36))
    project_name: Mapped[str | None] = mapped_column(String(60))
    recorded_us: Mapped[int]
