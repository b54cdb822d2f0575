"""What host and VMs used of CPU and memory over the last hour."""

from __future__ import annotations

from sqlalchemy import ForeignKey, Index
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class UsageSample(Base):
    """One look at the host (no VM), or at one VM's process."""

    __tablename__ = "usage_samples"
    __table_args__ = (Index(None, "vm_id", "at_ms"), Index(None, "at_ms"))

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    vm_id: Mapped[str | None] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"))
    at_ms: Mapped[int]
    # Processors kept busy since the sample before, in thousandths of one.
    cpu_milli: Mapped[int]
    memory_mb: Mapped[int]
