"""How a VM is reached: its host ports, its own from creation to removal, and the address DHCP gave it."""

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


class DhcpLease(Base):
    """The address of a network card, as the DHCP server of its bridge reported it last."""

    __tablename__ = "dhcp_leases"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), index=True)
    mac: Mapped[str] = mapped_column(String(17), unique=True)
    ip: Mapped[str] = mapped_column(String(45))
    reported_ms: Mapped[int]
