"""Where a job goes: an idle instance of a fleet, a new one, or nowhere; in the caller's transaction."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum, auto

from sqlalchemy.orm import Session

from models.fleet import Fleet, Instance
from models.run import Run, RunJob
from runs import description, names, planner, records, rolling
from runs.fleets import fleet_sizes
from runs.lifecycle import NO_FLEETS, Reason, Status
from runs.progress import end_job
from runs.service import chosen_fleets
from runs.sizes import Size, candidates, fits
from runs.specs import Spec


class Placed(Enum):
    """What became of a job that waits for a place."""

    THERE = auto()
    WAITING = (
        auto()
    )  # for an instance on its way in or out, or for room beside the replicas that serve
    NOWHERE = auto()


def place(session: Session, job: RunJob, sizes: Sequence[Size], hostname: str) -> Placed:
    """Gives a job an instance, or ends it for want of one; one that is to replace another waits for room."""
    run = job.run
    fleets = [
        fleet
        for fleet in chosen_fleets(session, run.project, run.spec)
        if _common(fleet, job, sizes)
    ]
    if not fleets:
        return _nowhere(session, job, f"{NO_FLEETS} of the project fit this job")
    idle = _idle_instance(fleets, run, job)
    if idle is not None:
        _assign(session, job, idle, hostname)
        _take(session, job, idle)
        return Placed.THERE
    if planner.merged(run.spec)["creation_policy"] != "reuse":
        for fleet in fleets:
            if _has_room(fleet):
                _create(session, job, fleet, _common(fleet, job, sizes)[0], hostname)
                return Placed.THERE
    if _is_coming(session, fleets, run, job) or _make_room(session, fleets):
        return Placed.WAITING
    return _nowhere(session, job, "all instances of the fleets are busy")


def _nowhere(session: Session, job: RunJob, why: str) -> Placed:
    if rolling.has_company(job.run, job):
        records.note_waiting(session, job, why)
        return Placed.WAITING
    end_job(session, job, Reason.NO_CAPACITY, why)
    return Placed.NOWHERE


def _common(fleet: Fleet, job: RunJob, sizes: Sequence[Size]) -> list[Size]:
    """The sizes that both the fleet and the job take, the best first."""
    wanted = planner.merged(job.run.spec)
    resources = job.spec["requirements"]["resources"]
    of_fleet = {size.name for size in fleet_sizes(fleet.spec, sizes)}
    return [size for size in candidates(wanted, resources, sizes) if size.name in of_fleet]


def _idle_instance(fleets: Sequence[Fleet], run: Run, job: RunJob) -> Instance | None:
    """The smallest idle instance that the job fits into and that no other user has had."""
    fitting = [
        each
        for each in _fitting(fleets, run, job)
        if each.status == Status.IDLE and each.vm_id is not None
    ]
    return min(fitting, key=lambda each: (each.size["cpu"], each.size["memory_mib"]), default=None)


def _fitting(fleets: Sequence[Fleet], run: Run, job: RunJob) -> list[Instance]:
    resources: Spec = job.spec["requirements"]["resources"]
    return [
        each
        for fleet in fleets
        for each in records.live(fleet)
        if each.user_id in (None, run.user_id) and fits(Size(**each.size), resources)
    ]


def _is_coming(session: Session, fleets: Sequence[Fleet], run: Run, job: RunJob) -> bool:
    """Whether an instance boots whose job has gone before it was there."""
    return any(
        each.status in (Status.PENDING, Status.PROVISIONING)
        and not records.unfinished_jobs_on(session, each.id)
        for each in _fitting(fleets, run, job)
    )


def _has_room(fleet: Fleet) -> bool:
    most = fleet.spec["configuration"]["nodes"]["max"]
    return most is None or len(records.live(fleet)) < most


def _make_room(session: Session, fleets: Sequence[Fleet]) -> bool:
    """Whether an instance is on its way out; an idle one that did not do is sent."""
    live = [each for fleet in fleets for each in records.live(fleet)]
    if any(each.status == Status.TERMINATING for each in live):
        return True
    return any(
        records.move_instance(session, each, Status.TERMINATING, reason="replaced")
        for each in live
        if each.status == Status.IDLE
    )


def _assign(session: Session, job: RunJob, instance: Instance, hostname: str) -> None:
    run = job.run
    # The job of a user who is gone makes the VM nobody's.
    instance.user_id = run.user_id or run.id
    run.fleet_id, run.fleet = instance.fleet_id, instance.fleet
    records.move_job(
        session,
        job,
        Status.PROVISIONING,
        instance_id=instance.id,
        provisioning=description.provisioning(instance.size, instance.id, hostname),
    )
    session.refresh(job, ["instance"])


def _take(session: Session, job: RunJob, instance: Instance) -> None:
    records.move_instance(session, instance, Status.BUSY)
    records.tell_instance(
        session, "Job assigned to instance. Instance blocks: 1/1 busy", instance, job
    )


def _create(session: Session, job: RunJob, fleet: Fleet, size: Size, hostname: str) -> None:
    instance = new_instance(session, fleet, size, planner.merged(job.run.spec)["idle_duration"])
    records.tell_instance(
        session, "Instance created for job. Instance status: PENDING", instance, job
    )
    _assign(session, job, instance, hostname)


def new_instance(
    session: Session, fleet: Fleet, size: Size, run_idle_s: int | None = None
) -> Instance:
    """A row for an instance whose VM is not there yet; a run's own idle duration can only shorten the fleet's."""
    num = names.lowest_free({each.num for each in records.live(fleet)})
    of_fleet = planner.merged(fleet.spec)["idle_duration"]
    given = [each for each in (of_fleet, run_idle_s) if each is not None and each >= 0]
    return records.add_instance(
        session, fleet, num, size, min(given) if given and run_idle_s is not None else None
    )
