"""Leases of host ports: a port belongs to one VM from its creation to its removal."""

from __future__ import annotations

from sqlalchemy import ForeignKey, String, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class PortLease(Base):
    """A host port that leads to a guest port."""

    __tablename__ = "port_leases"
    __table_args__ = (UniqueConstraint("protocol", "host_address", "host_port"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), index=True)
    position: Mapped[int]
    protocol: Mapped[str] = mapped_column(String(3))
    host_address: Mapped[str] = mapped_column(String(45))
    host_port: Mapped[int] = mapped_column(index=True)
    vm_port: Mapped[int]
