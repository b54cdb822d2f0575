"""Clusters: some VMs of one app behind one front, and what their front has counted."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, BigInteger, ForeignKey, Index, LargeBinary, String, Text, false, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base


class ClusterNode(Base):
    """A VM's place in a cluster, from before the VM is made until the VM is gone."""

    __tablename__ = "cluster_nodes"
    __table_args__ = (
        Index(None, "cluster_id", "slot", unique=True),
        Index(None, "cluster_id", "name", unique=True),
    )

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    cluster_id: Mapped[str] = mapped_column(ForeignKey("clusters.id", ondelete="CASCADE"))
    # The place among the balancer's servers of this cluster, from 1.
    slot: Mapped[int]
    name: Mapped[str] = mapped_column(String(60))
    weight: Mapped[int] = mapped_column(default=1, server_default="1")
    # None until the VM is made; with the VM the place goes too.
    vm_id: Mapped[str | None] = mapped_column(
        ForeignKey("vms.id", ondelete="CASCADE"), index=True, unique=True
    )
    # What it is made of, or is to be made of where there is no VM yet.
    plan_id: Mapped[int]
    # What it is to get of the traffic (secretvm/front.py, Traffic).
    traffic: Mapped[str] = mapped_column(String(8))


class ClusterPlan(Base):
    """What nodes of a cluster are made of (secretvm/wanted.py, Prepared); nothing of it is secret or changes."""

    __tablename__ = "cluster_plans"
    # A number is never given out twice: jobs know plans by it.
    __table_args__ = {"sqlite_autoincrement": True}  # noqa: RUF012 (SQLAlchemy's own form)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    cluster_id: Mapped[str] = mapped_column(
        ForeignKey("clusters.id", ondelete="CASCADE"), index=True
    )
    app_compose: Mapped[str] = mapped_column(Text)
    # The app's variables, encrypted to its guests.
    encrypted_env: Mapped[bytes] = mapped_column(LargeBinary)
    user_config: Mapped[str] = mapped_column(Text)
    flags: Mapped[dict[str, Any]] = mapped_column(JSON)
    publish: Mapped[list[int]] = mapped_column(JSON)


class Cluster(Base):
    """What a cluster was asked to be; what its VMs are at the moment, their own rows say."""

    __tablename__ = "clusters"
    __table_args__ = (
        Index(None, "project_id", "created_ms"),
        # A name is free again as soon as its cluster is on its way out.
        Index(
            "ix_clusters_project_id_name",
            "project_id",
            "name",
            unique=True,
            sqlite_where=text("NOT is_removed"),
        ),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id"))
    user_id: Mapped[str | None] = mapped_column(
        ForeignKey("users.id", ondelete="SET NULL"), index=True
    )
    name: Mapped[str] = mapped_column(String(60))
    # The wish that it be gone; its nodes and its row follow.
    is_removed: Mapped[bool] = mapped_column(default=False, server_default=false())

    vm_type: Mapped[str] = mapped_column(String(64))
    # One for all nodes: they share their keys.
    app_id: Mapped[str] = mapped_column(String(40))
    # What nodes are to be made of from now on.
    plan_id: Mapped[int | None]

    # The front: how it spreads requests, and how it speaks to the nodes.
    domain: Mapped[str] = mapped_column(Text)
    address: Mapped[str] = mapped_column(String(45))
    port: Mapped[int]
    strategy: Mapped[str] = mapped_column(String(16))
    sticky: Mapped[bool]
    max_connections: Mapped[int]
    password_hash: Mapped[str | None] = mapped_column(Text)
    backend_scheme: Mapped[str] = mapped_column(String(5))
    backend_port: Mapped[int]
    health_scheme: Mapped[str] = mapped_column(String(5))
    health_path: Mapped[str] = mapped_column(Text)
    health_port: Mapped[int]
    health_interval_s: Mapped[int]
    health_timeout_s: Mapped[int]

    # Why it could not be made as asked; "" when it could.
    error: Mapped[str] = mapped_column(Text, default="", server_default="")
    created_ms: Mapped[int]
    updated_ms: Mapped[int]

    nodes: Mapped[list[ClusterNode]] = relationship(
        cascade="all, delete-orphan",
        passive_deletes=True,
        order_by=ClusterNode.slot,
        lazy="selectin",
    )


class ClusterCount(Base):
    """One counter of a cluster's traffic (secretvm/traffic.py has the names); it only grows."""

    __tablename__ = "cluster_counts"

    cluster_id: Mapped[str] = mapped_column(
        ForeignKey("clusters.id", ondelete="CASCADE"), primary_key=True
    )
    name: Mapped[str] = mapped_column(String(32), primary_key=True)
    value: Mapped[int] = mapped_column(BigInteger)


class TrafficLog(Base):
    """How far HAProxy's log was read and counted; one row."""

    __tablename__ = "traffic_log"
    ONLY = 1

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    inode: Mapped[int] = mapped_column(BigInteger)
    offset: Mapped[int] = mapped_column(BigInteger)


class ClusterSlot(Base):
    """What went through a cluster's front in one stretch of time; kept for an hour, for its chart."""

    __tablename__ = "cluster_slots"

    cluster_id: Mapped[str] = mapped_column(
        ForeignKey("clusters.id", ondelete="CASCADE"), primary_key=True
    )
    # When it began.
    at_ms: Mapped[int] = mapped_column(BigInteger, primary_key=True)
    requests: Mapped[int]
    # Those that were answered, and what all their answers took.
    answered: Mapped[int]
    milliseconds: Mapped[int] = mapped_column(BigInteger)
