"""What guests say of their VMs and jobs, written into the rows; called from the executor's threads."""

from __future__ import annotations

from collections.abc import Sequence

from sqlalchemy.orm import Session

from core.errors import CasemateError
from models.fleet import Instance
from models.run import RunJob
from runs import description, instances, lifecycle, progress, records
from runs.desk import Desk
from runs.executor import Stage
from runs.lifecycle import Kind, Reason, Status
from runs.logs import log_of

CONSOLE_LINES = 20


class Reports:
    """The listener of the executor."""

    def __init__(self, desk: Desk) -> None:
        self.desk = desk

    def on_ready(self, vm_id: str) -> None:
        """The runner of a VM answers."""
        with self.desk.database.writing() as session:
            instance = records.instance_of_vm(session, vm_id)
            if instance is not None:
                instances.is_there(session, instance)
        self.desk.wake.set()

    def on_state(
        self, submission_id: str, stage: Stage, exit_status: int | None, message: str
    ) -> None:
        """A job came to a stage."""
        self.desk.begun.add(submission_id)
        with self.desk.database.writing() as session:
            job = records.job_with_run(session, submission_id)
            if job is None or lifecycle.is_finished(Kind.JOB, job.status):
                return
            if stage is Stage.PULLING:
                records.move_job(session, job, Status.PULLING)
            elif stage is Stage.RUNNING:
                self._has_begun(session, job)
            else:
                self._has_ended(session, job, stage, exit_status, message)
            progress.settle(session, job.run)
            instance = job.instance
        if stage in (Stage.EXITED, Stage.FAILED):
            self.desk.released(submission_id, instance)
        self.desk.wake.set()

    def _has_begun(self, session: Session, job: RunJob) -> None:
        instance = job.instance
        assert instance is not None
        if instance.status == Status.PROVISIONING:
            records.move_instance(session, instance, Status.BUSY)
        user, spec = job.spec["user"] or {}, job.spec
        runtime = description.runtime(
            instance.size,
            spec["working_dir"] or spec["home_dir"],
            user.get("username") or "root",
        )
        records.move_job(session, job, Status.RUNNING, runtime=runtime)

    def _has_ended(
        self, session: Session, job: RunJob, stage: Stage, exit_status: int | None, message: str
    ) -> None:
        job.exit_status = exit_status
        session.flush()
        if stage is Stage.EXITED:
            reason = Reason.CONTAINER_EXITED_WITH_ERROR if exit_status else Reason.DONE_BY_RUNNER
            progress.end_job(session, job, reason, message)
            return
        word, _, told = message.partition(": ")
        known = word in set(Reason)
        progress.end_job(
            session,
            job,
            Reason(word) if known else Reason.EXECUTOR_ERROR,
            told if known else message,
        )

    def on_output(self, submission_id: str, data: bytes) -> None:
        """The next bytes of a job's terminal."""
        quota, limit = self.desk.quota(submission_id), self.desk.config.runs.log_quota
        if quota.used <= limit:
            self.desk.log(submission_id).append(data)
            quota.add(len(data))
        # Once it is used up its end is ordered: what the job says until then fills no disk.
        if quota.used > limit and not quota.is_told:
            said = f"more than {limit} bytes of output in an hour ([runs] log_quota)"
            self.on_diagnosis(submission_id, said)
            with self.desk.database.writing() as session:
                job = records.job_with_run(session, submission_id)
                if job is not None:
                    self.desk.begin_end(session, job, Reason.LOG_QUOTA_EXCEEDED, said)
            quota.is_told = True

    def on_diagnosis(self, submission_id: str, text: str) -> None:
        """A line of the runner's own log of a job."""
        log = log_of(self.desk.config.data_dir, submission_id, diagnose=True)
        log.append(text.encode() + b"\r\n")
        log.close()

    def on_inactive(self, submission_id: str, seconds: int) -> None:
        """For how long nobody has been connected to a job."""
        with self.desk.database.writing() as session:
            job = records.job_with_run(session, submission_id)
            if job is None or job.status != Status.RUNNING:
                return
            job.inactivity_s = seconds
            limit = job.run.spec["configuration"].get("inactivity_duration")
            if limit is not None and seconds >= limit:
                self.desk.begin_end(session, job, Reason.INACTIVITY_DURATION_EXCEEDED)

    def on_lost(self, vm_id: str, message: str) -> None:
        """The runner of a VM cannot be spoken to any more."""
        with self.desk.database.reading() as session:
            instance = records.instance_of_vm(session, vm_id)
            booted = instance is not None and instance.status != Status.PROVISIONING
        if instance is None:
            return
        if not booted:
            message = f"{message}\n{self._last_lines(vm_id)}".strip()
        reason = Reason.INSTANCE_UNREACHABLE if booted else Reason.CREATING_CONTAINER_ERROR
        with self.desk.database.writing() as session:
            row = session.get_one(Instance, instance.id)
            row.unreachable = booted
            session.flush()
        self.desk.fail(instance.id, reason, message)

    def _last_lines(self, vm_id: str) -> str:
        """The end of what a VM's console showed."""
        try:
            said = "".join(self.desk.vms.log(vm_id, "serial", CONSOLE_LINES))
        except CasemateError:
            return ""
        return "\n".join(last_lines(said))


def last_lines(text: str) -> Sequence[str]:
    """The last lines of a console that say something."""
    return [line.rstrip() for line in text.splitlines() if line.strip()][-3:]
