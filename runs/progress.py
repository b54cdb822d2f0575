"""How runs follow their jobs: ends of jobs, retries, ends of runs; each step in the caller's transaction."""

from __future__ import annotations

from sqlalchemy.orm import Session

from accounts.keypairs import Safe
from models.run import Run, RunJob
from runs import lifecycle, planner, records, rolling, timeline
from runs.lifecycle import Kind, Reason, Status
from runs.moments import now_us

# Before a job is submitted again; while a host is full nothing is won by asking often.
RETRY_DELAY_US = {"no-capacity": 15_000_000, "interruption": 1_000_000, "error": 5_000_000}
# What ends the jobs of a run that ends.
_OF_JOBS = {
    Reason.STOPPED_BY_USER: Reason.TERMINATED_BY_USER,
    Reason.ABORTED_BY_USER: Reason.ABORTED_BY_USER,
}


def end_job(session: Session, job: RunJob, reason: Reason, message: str = "") -> bool:
    """Ends a job whose process is not there, or no more: its instance is free, its run follows."""
    records.move_job(session, job, Status.TERMINATING, reason=reason, message=message)
    return finish_job(session, job)


def finish_job(session: Session, job: RunJob) -> bool:
    """The end of a job that is ending, for the reason it has."""
    reason = job.termination_reason or Reason.TERMINATED_BY_SERVER
    if not records.move_job(session, job, lifecycle.end_of_job(reason)):
        return False
    _unassign(session, job)
    _tell_given_up(session, job)
    settle(session, job.run)
    return True


def _tell_given_up(session: Session, job: RunJob) -> None:
    run = job.run
    if run.status != Status.TERMINATING and job in rolling.given_up(run):
        told = (
            f"Update stopped. Deployment: {run.deployment_num}. {job.name} ended before it was ready; "
            "the other replicas stay as they are"
        )
        timeline.tell(session, told, timeline.of_run(run))


def _unassign(session: Session, job: RunJob) -> None:
    instance = job.instance
    if instance is None or instance.status != Status.BUSY:
        return
    records.move_instance(session, instance, Status.IDLE)
    timeline.tell(
        session,
        "Job unassigned from instance. Instance blocks: 0/1 busy",
        timeline.of_job(job, job.run),
        timeline.of_instance(instance),
    )


def settle(session: Session, run: Run) -> None:
    """Moves a run to where its jobs are."""
    jobs = records.latest_jobs(run)
    if run.status != Status.TERMINATING:
        reason = _reason_to_end(run, jobs)
        if reason is None:
            _follow(session, run, jobs)
            return
        records.move_run(session, run, Status.TERMINATING, reason=reason)
    end_jobs_of(session, run, jobs)
    if all(lifecycle.is_finished(Kind.JOB, job.status) for job in jobs):
        records.move_run(session, run, lifecycle.end_of_run(run.termination_reason or ""))


def end_jobs_of(session: Session, run: Run, jobs: list[RunJob]) -> None:
    """Begins to end the jobs of a run that is ending; those that nobody has begun end at once."""
    reason = _OF_JOBS.get(Reason(run.termination_reason or ""), Reason.TERMINATED_BY_SERVER)
    for job in jobs:
        records.move_job(session, job, Status.TERMINATING, reason=reason)
        if job.status == Status.TERMINATING and job.instance_id is None:
            records.move_job(session, job, lifecycle.end_of_job(job.termination_reason or reason))


def _follow(session: Session, run: Run, jobs: list[RunJob]) -> None:
    active = [job.status for job in jobs if not lifecycle.is_finished(Kind.JOB, job.status)]
    is_waiting = any(_failure(job) for job in jobs)
    wanted = Status.PENDING if is_waiting and not active else lifecycle.state_of_run(active)
    if run.status != wanted:
        records.move_run(session, run, wanted)


def _reason_to_end(run: Run, jobs: list[RunJob]) -> Reason | None:
    """Why a run ends now, or None while it goes on."""
    jobs = rolling.counted(run, jobs)
    if jobs and all(job.status == Status.DONE for job in jobs):
        return Reason.ALL_JOBS_DONE
    if planner.merged(run.spec)["stop_criteria"] == "master-done":
        masters = [job for job in jobs if job.job_num == 0]
        if masters and all(job.status == Status.DONE for job in masters):
            return Reason.ALL_JOBS_DONE
    for job in jobs:
        if not lifecycle.is_finished(Kind.JOB, job.status) or job.status == Status.DONE:
            continue
        if not _is_covered(job):
            return Reason.JOB_FAILED
        if not _is_in_time(run, job):
            return Reason.RETRY_LIMIT_EXCEEDED
    return None


def _failure(job: RunJob) -> str | None:
    """What a retry policy calls the end of a job."""
    is_failed = job.status == Status.FAILED
    return lifecycle.retry_event(job.termination_reason) if is_failed else None


def _is_covered(job: RunJob) -> bool:
    policy, event = job.spec["retry"], _failure(job)
    return policy is not None and event in policy["on_events"]


def _is_in_time(run: Run, job: RunJob) -> bool:
    """A run's age counts where there was no room, the time since the failure otherwise."""
    since = run.submitted_us if _failure(job) == "no-capacity" else job.finished_us
    longest_us = int(job.spec["retry"]["duration"]) * 1_000_000
    return now_us() - (since or 0) <= longest_us


def retry(session: Session, run: Run, safe: Safe) -> None:
    """Submits jobs again whose time has come, and ends a run for which it is over."""
    failed = [job for job in rolling.counted(run, records.latest_jobs(run)) if _failure(job)]
    for job in failed:
        event = _failure(job)
        due = (job.finished_us or 0) + RETRY_DELAY_US[event or "error"]
        if now_us() >= due and _is_covered(job) and _is_in_time(run, job):
            spec = rolling.spec_of(run, job.replica_num, job.job_num, safe)
            records.submit_job(session, run, spec, job.submission_num + 1, "retry")
    if failed:
        records.sort_jobs(session, run)
        settle(session, run)
