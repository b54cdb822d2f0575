"""How a service follows its configuration while it runs: the number of its replicas, and the replacement, one at a time,
of those of an earlier deployment.

Everything is read from the rows, so a restart goes on in the middle.  A replica is one job.  The one that replaces
another starts beside it, and the old one ends when the new one is ready; who fails before that leaves the old ones
alone, and is not tried again until the run is updated anew.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.orm import Session

from accounts.keypairs import Safe
from models.run import Run, RunJob
from runs import lifecycle, records, sealing
from runs.jobs import counts, job_specs
from runs.lifecycle import Kind, Reason, Status
from runs.moments import now_us
from runs.specs import Spec

# More replicas than wanted while some are replaced.
SURGE = 1
# Before room is looked for again where the host had none: doubles up to the second.
NO_ROOM_US = 15_000_000
NO_ROOM_MOST_US = 600_000_000


@dataclass(frozen=True)
class Step:
    """What a service lacks now: so many new replicas, and the end of these."""

    add: int = 0
    stop: tuple[RunJob, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.add or self.stop)


def is_service(run: Run) -> bool:
    """Whether a run has replicas that can be replaced."""
    return bool(run.spec["configuration"]["type"] == "service")


def is_ready(job: RunJob) -> bool:
    """Whether a replica may be sent requests."""
    return job.ready and job.status == Status.RUNNING


def has_company(run: Run, job: RunJob) -> bool:
    """Whether a replica came with an update of a service, and others of it are there."""
    others = [each for each in records.latest_jobs(run) if each.id != job.id]
    return is_service(run) and job.deployment_num > 0 and any(map(_is_there, others))


def counted(run: Run, jobs: Sequence[RunJob]) -> list[RunJob]:
    """The jobs that say how a run goes: not those that were replaced, or failed to replace others."""
    if not is_service(run):
        return list(jobs)
    has_live = any(map(_is_live, jobs))
    return [job for job in jobs if not _is_spent(run, job, has_live)]


def given_up(run: Run) -> list[RunJob]:
    """The replicas of the present deployment that ended before they were ready, so that the others stay."""
    return [job for job in _failed(run) if job.termination_reason != Reason.NO_CAPACITY]


def waits(run: Run) -> bool:
    """Whether a replica of an update has no room yet."""
    jobs = records.latest_jobs(run)
    waiting = [job for job in jobs if job.status == Status.SUBMITTED and has_company(run, job)]
    return bool(waiting or _failed(run)) and not given_up(run)


def step(run: Run, now: int) -> Step:
    """What to do next so that a service has the replicas that its configuration says."""
    if not is_service(run) or run.status == Status.TERMINATING:
        return Step()
    jobs = records.latest_jobs(run)
    live = [job for job in jobs if _is_live(job)]
    old = [job for job in live if job.deployment_num < run.deployment_num]
    may_add = not given_up(run) and now >= _next_try(run)
    wanted, _ = counts(run.spec)
    here = counted(run, jobs)
    if not old:
        missing = max(0, wanted - len(here)) if may_add else 0
        return Step(missing, _surplus(live, len(live) - wanted))
    occupied = [job for job in jobs if job in here or _is_there(job)]
    renewed = [job for job in here if job.deployment_num == run.deployment_num]
    missing = min(wanted - len(renewed), wanted + SURGE - len(occupied)) if may_add else 0
    idle = () if given_up(run) else tuple(job for job in old if not is_ready(job))
    ready = [job for job in live if is_ready(job)]
    return Step(max(0, missing), idle + _surplus(ready, len(ready) - wanted))


def roll(session: Session, run: Run, safe: Safe) -> None:
    """Brings a run a step nearer to its configuration."""
    _take_over(session, run, safe)
    found = step(run, now_us())
    for job in found.stop:
        records.move_job(session, job, Status.TERMINATING, reason=Reason.SCALED_DOWN)
    for _ in range(found.add):
        replica_num, submission_num = _free_place(run)
        spec = spec_of(run, replica_num, 0, safe)
        records.submit_job(session, run, spec, submission_num, "update")
        records.sort_jobs(session, run)


def spec_of(run: Run, replica_num: int, job_num: int, safe: Safe) -> Spec:
    """The sealed spec of a job as the run has it now."""
    specs = job_specs(sealing.unseal(run.spec, safe, run.id), replica_num)
    return sealing.seal(specs[job_num], safe, run.id)


def _take_over(session: Session, run: Run, safe: Safe) -> None:
    """Counts to the present deployment what is already as it asks."""
    for job in records.latest_jobs(run):
        if (
            job.deployment_num < run.deployment_num
            and _is_live(job)
            and _is_as_wished(run, job, safe)
        ):
            records.take_over(session, job, run.deployment_num)


def _is_as_wished(run: Run, job: RunJob, safe: Safe) -> bool:
    """Whether the run's configuration asks nothing else of a job; only that of a service can."""
    if not is_service(run):
        return True
    wished = job_specs(sealing.unseal(run.spec, safe, run.id), job.replica_num)
    return bool(sealing.unseal(job.spec, safe, run.id) == wished[job.job_num])


def _is_there(job: RunJob) -> bool:
    return not lifecycle.is_finished(Kind.JOB, job.status)


def _is_live(job: RunJob) -> bool:
    return _is_there(job) and job.status != Status.TERMINATING


def _is_spent(run: Run, job: RunJob, has_live: bool) -> bool:
    """Whether nothing follows from the end of a replica."""
    if _is_live(job):
        return False
    is_past = job.deployment_num < run.deployment_num
    if job.termination_reason == Reason.SCALED_DOWN or (is_past and job.status == Status.DONE):
        return True
    was_never_ready = job.ready_us is None and job.deployment_num > 0
    return was_never_ready and (has_live or is_past)


def _failed(run: Run) -> list[RunJob]:
    """The replicas of the present deployment that failed to replace or to join others."""
    jobs = records.latest_jobs(run)
    used = {job.id for job in counted(run, jobs)}
    return [
        job
        for job in jobs
        if job.id not in used
        and job.deployment_num == run.deployment_num
        and job.termination_reason != Reason.SCALED_DOWN
    ]


def _next_try(run: Run) -> int:
    """When room may be looked for again; 0: now."""
    if not any(job.termination_reason == Reason.NO_CAPACITY for job in _failed(run)):
        return 0
    tries = [
        job.finished_us or 0
        for job in run.jobs
        if job.deployment_num == run.deployment_num and job.termination_reason == Reason.NO_CAPACITY
    ]
    delay: int = NO_ROOM_US * 2 ** (len(tries) - 1)
    return max(tries) + min(delay, NO_ROOM_MOST_US)


def _surplus(jobs: Sequence[RunJob], count: int) -> tuple[RunJob, ...]:
    """So many of the replicas, those first that are of an earlier deployment, not ready, or late."""
    order = sorted(jobs, key=lambda job: (job.deployment_num, is_ready(job), -job.replica_num))
    return tuple(order[: max(0, count)])


def _free_place(run: Run) -> tuple[int, int]:
    """The numbers of a new replica and of its submission: those of one that is over are used again."""
    last = {job.replica_num: job for job in records.latest_jobs(run)}
    kept = {job.replica_num for job in counted(run, list(last.values()))}
    for num, job in last.items():
        if num not in kept and not _is_there(job):
            return num, job.submission_num + 1
    return max(last, default=-1) + 1, 0
