"""What the parts of the scheduler share: the host, the executor, and what this process remembers of jobs.

What it remembers is no truth: after a restart the rows are, and everything is told to the executor again.
"""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass, field

from sqlalchemy.orm import Session

from accounts.keypairs import Safe
from core.config import Config
from models.fleet import Instance
from models.run import RunJob
from runs import progress, records
from runs.executor import Executor
from runs.lifecycle import Reason, Status
from runs.logs import Log, log_of
from runs.moments import now_us
from runs.sizes import room_of, sizes_of
from vmm.service import Vms

HOUR_S = 3600.0


@dataclass
class Quota:
    """Bytes of output of one job in the hour that began at `since`."""

    since: float = field(default_factory=time.monotonic)
    used: int = 0
    # Its end was ordered.
    is_told: bool = False

    def add(self, count: int) -> None:
        """Counts further bytes, in a new hour anew."""
        if time.monotonic() - self.since > HOUR_S:
            self.since, self.used = time.monotonic(), 0
        self.used += count


class Desk:
    """The host and the jobs in hand."""

    # Set by the scheduler: it is made with a listener that needs this desk.
    executor: Executor

    def __init__(self, vms: Vms) -> None:
        self.vms = vms
        self.config: Config = vms.config
        self.database = vms.database
        self.safe = Safe.of(self.config.data_dir)
        self.sizes = sizes_of(self.config.offers, room_of(self.config))
        # What this process has told the executor.
        self.submitted: set[str] = set()
        self.stopped: dict[str, int | None] = {}
        # Jobs whose guest has the order; whatever an earlier process submitted may be one.
        self.begun: set[str] = set()
        self.logs: dict[str, Log] = {}
        self.quotas: dict[str, Quota] = {}
        # There is something to do before the next look.
        self.wake = threading.Event()

    def log(self, submission_id: str) -> Log:
        """The output of a job."""
        return self.logs.setdefault(submission_id, log_of(self.config.data_dir, submission_id))

    def quota(self, submission_id: str) -> Quota:
        """What a job has used of its hour; what came before a restart of this process counts."""
        if submission_id not in self.quotas:
            used = self.log(submission_id).length_since(now_us() - int(HOUR_S * 1_000_000))
            self.quotas[submission_id] = Quota(used=used)
        return self.quotas[submission_id]

    def released(self, job_id: str, instance: Instance | None) -> None:
        """Drops a job that has ended, here and in its VM."""
        if instance is not None and instance.vm_id is not None and job_id in self.submitted:
            self.executor.release(instance.vm_id, job_id)
        self.submitted.discard(job_id)
        self.begun.discard(job_id)
        self.stopped.pop(job_id, None)
        self.quotas.pop(job_id, None)
        if log := self.logs.pop(job_id, None):
            log.close()
        self.wake.set()

    def begin_end(self, session: Session, job: RunJob, reason: Reason, message: str = "") -> None:
        """Wishes that a job that runs ends."""
        if records.move_job(session, job, Status.TERMINATING, reason=reason, message=message):
            self.wake.set()

    def fail(self, instance_id: str, reason: Reason, message: str) -> None:
        """Ends an instance and what it has of jobs."""
        with self.database.writing() as session:
            instance = session.get_one(Instance, instance_id)
            records.move_instance(
                session, instance, Status.TERMINATING, reason=reason, message=message
            )
            for job_id in records.unfinished_jobs_on(session, instance_id):
                job = records.job_with_run(session, job_id)
                assert job is not None
                progress.end_job(session, job, reason, message)
                self.submitted.discard(job_id)
                self.stopped.pop(job_id, None)
            self.wake.set()
