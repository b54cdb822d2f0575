"""Runs and their jobs; a job that is submitted again has one row for each submission."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, String, Text, text
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.account import Project, User
from models.base import Base
from models.fleet import Fleet, Instance


class Run(Base):
    """What a user submitted; `status` takes the values of runs/lifecycle.py, times are microseconds."""

    __tablename__ = "runs"
    __table_args__ = (
        # A name is free again when its run is marked deleted.
        Index("ix_runs_name", "project_id", "name", unique=True, sqlite_where=text("NOT deleted")),
        Index(None, "project_id", "submitted_us"),
        Index(None, "submitted_us"),
        Index(None, "status"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    user_id: Mapped[str | None] = mapped_column(
        ForeignKey("users.id", ondelete="SET NULL"), index=True
    )
    fleet_id: Mapped[str | None] = mapped_column(ForeignKey("fleets.id", ondelete="SET NULL"))
    name: Mapped[str] = mapped_column(String(41))
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    status: Mapped[str] = mapped_column(String(16))
    termination_reason: Mapped[str | None] = mapped_column(String(40))
    priority: Mapped[int] = mapped_column(default=0)
    deployment_num: Mapped[int] = mapped_column(default=0)
    deleted: Mapped[bool] = mapped_column(default=False)
    submitted_us: Mapped[int]
    processed_us: Mapped[int]

    project: Mapped[Project] = relationship(lazy="joined", innerjoin=True)
    user: Mapped[User | None] = relationship(lazy="joined")
    fleet: Mapped[Fleet | None] = relationship(lazy="raise")
    jobs: Mapped[list[RunJob]] = relationship(
        order_by="RunJob.replica_num, RunJob.job_num, RunJob.submission_num",
        back_populates="run",
        lazy="raise",
    )


class RunJob(Base):
    """One submission of one job of a run, and how far it is."""

    __tablename__ = "run_jobs"
    __table_args__ = (
        Index(None, "run_id", "replica_num", "job_num", "submission_num", unique=True),
        Index(None, "status"),
        Index(None, "instance_id"),
    )

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    run_id: Mapped[str] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"))
    job_num: Mapped[int]
    replica_num: Mapped[int]
    submission_num: Mapped[int]
    deployment_num: Mapped[int]
    name: Mapped[str] = mapped_column(String(60))
    spec: Mapped[dict[str, Any]] = mapped_column(JSON)
    status: Mapped[str] = mapped_column(String(16))
    termination_reason: Mapped[str | None] = mapped_column(String(40))
    termination_message: Mapped[str | None] = mapped_column(Text)
    exit_status: Mapped[int | None]
    inactivity_s: Mapped[int | None]
    instance_id: Mapped[str | None] = mapped_column(ForeignKey("instances.id", ondelete="SET NULL"))
    # As the client reads them; set when the instance is known, and when the job runs.
    provisioning: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    runtime: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    # Of a service: whether it may be sent requests now, when it first could, and of each probe how often it has passed
    # in a row.
    ready: Mapped[bool] = mapped_column(default=False)
    ready_us: Mapped[int | None]
    streaks: Mapped[list[int] | None] = mapped_column(JSON)
    submitted_us: Mapped[int]
    processed_us: Mapped[int]
    provisioned_us: Mapped[int | None]
    running_us: Mapped[int | None]
    terminating_us: Mapped[int | None]
    finished_us: Mapped[int | None]

    run: Mapped[Run] = relationship(back_populates="jobs")
    instance: Mapped[Instance | None] = relationship(lazy="joined")
