"""Work that goes on after its call was answered: what was asked, how far it is, and how it ended."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class Job(Base):
    """One job; `status` takes the values of secretvm/jobs.py, `progress` goes from 0 to 100."""

    __tablename__ = "jobs"
    __table_args__ = (Index(None, "status"), Index(None, "project_id", "created_ms"))

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    type: Mapped[str] = mapped_column(String(40))
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    # The VM that it holds, where it holds one; it may be gone.
    vm_id: Mapped[str | None] = mapped_column(String(64), index=True)
    # Ids and choices alone: what is secret or large is in the row of what the job is about.
    argument: Mapped[dict[str, Any]] = mapped_column(JSON)
    status: Mapped[str] = mapped_column(String(10))
    progress: Mapped[int]
    # How often it was begun: one that ends the process each time must not be tried for ever.
    tries: Mapped[int]
    error: Mapped[str | None] = mapped_column(Text)
    result: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    created_ms: Mapped[int]
    updated_ms: Mapped[int]
