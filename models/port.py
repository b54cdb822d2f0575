"""How a VM is reached: its host ports, its own from creation to removal, and the address DHCP gave it."""

from __future__ import annotations

from sqlalchemy import ForeignKey, String, UniqueConstraint, false
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base
from models.cluster import Cluster


class PortLease(Base):
    """A host port that leads to a guest port, or to a cluster."""

    __tablename__ = "port_leases"
    __table_args__ = (UniqueConstraint("protocol", "host_address", "host_port"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    # Whose it is: a VM's or the front's of a cluster.
    vm_id: Mapped[str | None] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), index=True)
    cluster_id: Mapped[str | None] = mapped_column(
        ForeignKey(Cluster.id, ondelete="CASCADE"), index=True
    )
    position: Mapped[int]
    protocol: Mapped[str] = mapped_column(String(3))
    host_address: Mapped[str] = mapped_column(String(45))
    host_port: Mapped[int] = mapped_column(index=True)
    vm_port: Mapped[int]
    # Chosen by the service for a surface of its own, not named by a request to the VMM.
    own: Mapped[bool] = mapped_column(default=False, server_default=false())


class DhcpLease(Base):
    """The address of a network card, as the DHCP server of its bridge reported it last."""

    __tablename__ = "dhcp_leases"

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), index=True)
    mac: Mapped[str] = mapped_column(String(17), unique=True)
    ip: Mapped[str] = mapped_column(String(45))
    reported_ms: Mapped[int]
