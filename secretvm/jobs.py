"""Background jobs: rows that say what is left to do, and the threads of the one background process that do it.

A job is begun by a conditional change of its row from pending to running, so that it runs once however often its
bell rings.  Whatever a killed process left running is begun again where its kind says that this does no harm.
Source: secretvm.md section 5.
"""

from __future__ import annotations

import logging
import threading
import time
import uuid
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from sqlalchemy import delete, event, select, update
from sqlalchemy.orm import Session

from core.errors import CasemateError, NotFound
from models.base import disk_trouble
from models.job import Job
from secretvm import bell
from secretvm.vm_object import iso
from vmm.service import Vms

logger = logging.getLogger(__name__)

KEPT_MS = 7 * 24 * 3_600_000
# A bell that was not heard for so long is lost.
LOST_S = 2.0
# A job that was running each time the process died is given up.
TRIES = 3
INTERRUPTED = "interrupted by restart"


class Status(StrEnum):
    """How far a job is."""

    PENDING = "pending"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"


UNFINISHED = (Status.PENDING, Status.RUNNING)


@dataclass(frozen=True)
class Work:
    """A job as the function that does it sees it."""

    vms: Vms
    id: str
    project_id: str
    argument: Mapping[str, Any]

    def progress(self, percent: int) -> None:
        """Notes how far the job is."""
        with self.vms.database.writing() as session:
            progress(session, self.id, percent)


# Does the work and returns its result; a CasemateError is the reason why it failed.
Function = Callable[[Work], Mapping[str, Any]]


@dataclass(frozen=True)
class Kind:
    """A type of job; `resumes`: it may be begun again after the process that did it was killed."""

    function: Function
    resumes: bool = True


# By type; each module of this area adds its own with `kind`.
KINDS: dict[str, Kind] = {}


def kind(type_: str, *, resumes: bool = True) -> Callable[[Function], Function]:
    """Makes a function the one that does jobs of a type."""

    def add(function: Function) -> Function:
        KINDS[type_] = Kind(function, resumes)
        return function

    return add


def enqueue(
    session: Session,
    type_: str,
    project_id: str,
    argument: Mapping[str, Any],
    vm_id: str | None = None,
    job_id: str = "",
) -> str:
    """Adds a job to a writing session and returns its id; its bell rings when the session has committed.

    `vm_id` is the VM that the job holds, which is `updating` meanwhile; an id is drawn unless one is given.
    """
    job_id, now = job_id or str(uuid.uuid4()), _now_ms()
    session.add(
        Job(
            id=job_id,
            type=type_,
            project_id=project_id,
            vm_id=vm_id,
            argument=dict(argument),
            status=Status.PENDING,
            progress=0,
            tries=0,
            created_ms=now,
            updated_ms=now,
        )
    )
    # The database lies in the data directory, and so does the bell.
    data_dir = Path(session.get_bind().engine.url.database or "").parent
    event.listen(session, "after_commit", lambda _: bell.ring(data_dir, job_id), once=True)
    return job_id


def progress(session: Session, job_id: str, percent: int) -> None:
    """Notes how far a running job is; it never goes back."""
    session.execute(
        update(Job)
        .where(Job.id == job_id, Job.status == Status.RUNNING, Job.progress < percent)
        .values(progress=percent, updated_ms=_now_ms())
    )


def find(session: Session, job_id: str, project_ids: frozenset[str] | None) -> Job:
    """A job of one of some projects (None: of any), or NotFound."""
    job = session.get(Job, job_id)
    if job is None or (project_ids is not None and job.project_id not in project_ids):
        raise NotFound(f"background job {job_id[:64]} not found")
    return job


def told(job: Job) -> dict[str, Any]:
    """A job as the interface shows it."""
    return {
        "id": job.id,
        "type": job.type,
        "status": job.status,
        "progress": job.progress,
        "error": job.error,
        "result": job.result,
        "createdAt": iso(job.created_ms),
        "updatedAt": iso(job.updated_ms),
    }


def held_vms(session: Session, type_: str) -> frozenset[str]:
    """The VMs that unfinished jobs of a type hold."""
    held = select(Job.vm_id).where(Job.status.in_(UNFINISHED), Job.type == type_)
    return frozenset(vm_id for vm_id in session.scalars(held) if vm_id)


@dataclass
class Worker:
    """What the background process runs: it hears bells, and looks for those that it did not hear."""

    vms: Vms
    stopping: threading.Event = field(default_factory=threading.Event)
    listener: bell.Listener | None = None

    def start(self) -> None:
        """Takes up what a former process left, then works until `stop`."""
        self.take_over()
        self.listener = bell.listen(self.vms.config.data_dir, self.run)
        self.listener.start()

    def stop(self) -> None:
        """Begins no further job; those under way end with the process and are taken up by the next."""
        self.stopping.set()
        if self.listener is not None:
            self.listener.stop()

    def take_over(self) -> None:
        """Makes the jobs that a killed process was at pending again, or failed where that could do harm."""
        running = Job.status == Status.RUNNING
        resumed = [name for name, each in KINDS.items() if each.resumes]
        again = (running, Job.type.in_(resumed), Job.tries < TRIES)
        with self.vms.database.writing() as session:
            session.execute(update(Job).where(*again).values(status=Status.PENDING))
            session.execute(
                update(Job)
                .where(running)
                .values(status=Status.FAILED, error=INTERRUPTED, updated_ms=_now_ms())
            )

    def run(self, job_id: str) -> None:
        """Does a job that nobody has begun."""
        work = None if self.stopping.is_set() else self._begin(job_id)
        if work is None:
            return
        try:
            result = KINDS[work[0]].function(work[1])
        except CasemateError as error:
            self._end(job_id, status=Status.FAILED, error=error.message)
        except (
            Exception
        ) as error:  # a thread of the queue would only log it, and the job run for ever
            logger.exception("job %s failed", job_id)
            self._end(job_id, status=Status.FAILED, error=_told(error))
        else:
            self._end(job_id, status=Status.COMPLETED, progress=100, result=dict(result))

    def sweep(self) -> None:
        """Rings for pending jobs whose bell seems lost, and drops those that ended long ago."""
        now = _now_ms()
        waiting = select(Job.id).where(
            Job.status == Status.PENDING, Job.updated_ms < now - LOST_S * 1000
        )
        old = (Job.status.not_in(UNFINISHED), Job.updated_ms < now - KEPT_MS)
        with self.vms.database.reading() as session:
            lost = session.scalars(waiting.order_by(Job.created_ms)).all()
            has_old = session.scalar(select(Job.id).where(*old).limit(1))
        # Bells that wait for a free worker are not lost.
        if lost and bell.is_silent(self.vms.config.data_dir):
            for job_id in lost:
                bell.ring(self.vms.config.data_dir, job_id)
        if has_old:
            with self.vms.database.writing() as session:
                session.execute(delete(Job).where(*old))

    def _begin(self, job_id: str) -> tuple[str, Work] | None:
        with self.vms.database.writing() as session:
            job = session.get(Job, job_id)
            if job is None or job.status != Status.PENDING:
                return None
            job.status, job.updated_ms = Status.RUNNING, _now_ms()
            job.tries += 1
            return job.type, Work(self.vms, job.id, job.project_id, job.argument)

    def _end(self, job_id: str, **values: Any) -> None:
        with self.vms.database.writing() as session:
            session.execute(
                update(Job)
                .where(Job.id == job_id, Job.status == Status.RUNNING)
                .values(**values, updated_ms=_now_ms())
            )


def _told(error: Exception) -> str:
    trouble = disk_trouble(error)
    return f"the disk of this host {trouble}" if trouble else "internal error; see the service log"


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
