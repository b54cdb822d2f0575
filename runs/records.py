"""Reading and moving the rows of fleets, instances, runs and jobs: each move is conditional and writes its event."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from sqlalchemy import Update, func, select, update
from sqlalchemy.orm import Session, selectinload
from sqlalchemy.orm.attributes import set_committed_value

from accounts.keypairs import Safe
from accounts.roles import Caller
from models.account import Project
from models.base import met_row
from models.fleet import Fleet, Instance
from models.run import Run, RunJob
from models.vm import Vm
from runs import lifecycle, sealing, timeline
from runs.jobs import counts, job_specs
from runs.lifecycle import Kind, Reason, Status
from runs.moments import now_us
from runs.sizes import Size
from runs.timeline import Target

_KINDS: dict[type[Run | RunJob | Instance | Fleet], Kind] = {
    Run: Kind.RUN,
    RunJob: Kind.JOB,
    Instance: Kind.INSTANCE,
    Fleet: Kind.FLEET,
}

# Why an instance ends that did what it should.
ENDED_WELL = ("idle_timeout", "replaced", "terminated_by_user", "fleet_deleted")


def new_id() -> str:
    """An id for a new row."""
    return str(uuid.uuid4())


def _move(
    session: Session, row: Run | RunJob | Instance | Fleet, after: Status, values: dict[str, Any]
) -> bool:
    """Changes the state of a row if the table allows it and nobody was faster; whether it did."""
    kind, before = _KINDS[type(row)], row.status
    if not lifecycle.may_move(kind, before, after):
        return False
    table: Any = type(row)
    asked: Update = update(table).where(table.id == row.id, table.status == before)
    if not met_row(session, asked.values(status=after, **values)):
        return False
    session.refresh(row, ["status", *values])
    return True


def _changed(kind: str, before: str, after: str, reason: str | None = None) -> str:
    told = f"{kind} status changed {before.upper()} -> {after.upper()}"
    return f"{told}. Termination reason: {reason.upper()}" if reason else told


def move_run(
    session: Session,
    run: Run,
    after: Status,
    *,
    reason: Reason | None = None,
    by: Caller | None = None,
) -> bool:
    """Moves a run, with a reason when it begins to end."""
    before, now = run.status, now_us()
    values: dict[str, Any] = {"processed_us": now}
    if reason is not None:
        values["termination_reason"] = reason
    if not _move(session, run, after, values):
        return False
    timeline.tell(session, _changed("Run", before, after, reason), timeline.of_run(run), by=by)
    return True


def move_job(
    session: Session,
    job: RunJob,
    after: Status,
    *,
    reason: Reason | None = None,
    message: str = "",
    **values: Any,
) -> bool:
    """Moves a job, with a reason when it begins to end."""
    before, now = job.status, now_us()
    moment = {
        Status.PROVISIONING: "provisioned_us",
        Status.RUNNING: "running_us",
        Status.TERMINATING: "terminating_us",
    }.get(after)
    values |= {"processed_us": now} | ({moment: now} if moment else {})
    if lifecycle.is_finished(Kind.JOB, after):
        values["finished_us"] = now
    if reason is not None:
        values |= {"termination_reason": reason, "termination_message": message or None}
    if not _move(session, job, after, values):
        return False
    told = _changed("Job", before, after, reason)
    said = f" ({message[:500]})" if reason is not None and message else ""
    timeline.tell(session, told + said, timeline.of_job(job, job.run))
    return True


def move_instance(
    session: Session,
    instance: Instance,
    after: Status,
    *,
    reason: str | None = None,
    message: str = "",
    by: Caller | None = None,
    **values: Any,
) -> bool:
    """Moves an instance, with a reason when it begins to end."""
    before, now = instance.status, now_us()
    values["idle_since_us"] = now if after == Status.IDLE else None
    if after == Status.TERMINATED:
        values["finished_us"] = now
    if reason is not None:
        values |= {"termination_reason": reason, "termination_message": message or None}
    if not _move(session, instance, after, values):
        return False
    told = _changed("Instance", before, after, reason)
    timeline.tell(session, told, timeline.of_instance(instance), by=by)
    return True


def move_fleet(
    session: Session, fleet: Fleet, after: Status, *, by: Caller | None = None, **values: Any
) -> bool:
    """Moves a fleet."""
    before = fleet.status
    if not _move(session, fleet, after, values):
        return False
    timeline.tell(session, _changed("Fleet", before, after), timeline.of_fleet(fleet), by=by)
    return True


# Runs ------------------------------------------------------------------------------------------


def run_named(session: Session, project: Project, name: str) -> Run | None:
    """The run of that name which is not marked deleted."""
    return next(iter(runs_named(session, project, [name])), None)


def runs_named(session: Session, project: Project, names: Iterable[str]) -> Sequence[Run]:
    """The runs of those names that are not marked deleted; a name without one is left out."""
    asked = select(Run).where(
        Run.project_id == project.id, Run.name.in_(set(names)), Run.deleted.is_(False)
    )
    return session.scalars(asked.options(*run_parts())).all()


def service_of(session: Session, project_name: str, run_name: str) -> Run | None:
    """The run of that name in a project of that name, or None."""
    project = session.scalar(select(Project).where(Project.name == project_name))
    return run_named(session, project, run_name) if project is not None else None


def run_parts() -> list[Any]:
    """What of a run is read with it, to show it or to move its jobs."""
    return [selectinload(Run.jobs), selectinload(Run.fleet).lazyload(Fleet.instances)]


def latest_jobs(run: Run) -> list[RunJob]:
    """The last submission of each job of a run."""
    last: dict[tuple[int, int], RunJob] = {}
    for job in run.jobs:  # ordered by submission
        last[job.replica_num, job.job_num] = job
    return list(last.values())


def add_run(
    session: Session, project: Project, caller: Caller, spec: dict[str, Any], safe: Safe
) -> Run:
    """Makes a run and its jobs; what is secret of its spec is sealed."""
    now, run_id = now_us(), new_id()
    run = Run(
        id=run_id,
        project=project,
        project_id=project.id,
        user_id=caller.user_id,
        name=spec["run_name"],
        spec=sealing.seal(spec, safe, run_id),
        status=Status.SUBMITTED,
        priority=spec["configuration"]["priority"],
        deployment_num=0,
        deleted=False,
        submitted_us=now,
        processed_us=now,
    )
    session.add(run)
    session.flush()
    timeline.tell(session, "Run submitted. Status: SUBMITTED", timeline.of_run(run), by=caller)
    replicas, _ = counts(spec)
    for replica_num in range(replicas):
        for job_spec in job_specs(spec, replica_num):
            submit_job(session, run, sealing.seal(job_spec, safe, run_id), 0, "run submission")
    session.flush()
    return run


def change_run(
    session: Session, run: Run, spec: dict[str, Any], safe: Safe, told: str, by: Caller
) -> bool:
    """Gives an active run another spec, which is its next deployment; whether nobody was faster."""
    values = {
        "spec": sealing.seal(spec, safe, run.id),
        "priority": spec["configuration"]["priority"],
        "deployment_num": run.deployment_num + 1,
        "processed_us": now_us(),
    }
    asked: Update = update(Run).where(
        Run.id == run.id, Run.status == run.status, Run.deployment_num == run.deployment_num
    )
    if not met_row(session, asked.values(values)):
        return False
    session.refresh(run, list(values))
    timeline.tell(session, told, timeline.of_run(run), by=by)
    return True


def note_probes(session: Session, job: RunJob, streaks: list[int], *, ready: bool) -> None:
    """Keeps how often the probes of a running job have passed in a row, and whether it may be sent requests."""
    values: dict[str, Any] = {"streaks": streaks, "ready": ready}
    if ready and job.ready_us is None:
        values["ready_us"] = now_us()
    asked: Update = update(RunJob).where(RunJob.id == job.id, RunJob.status == Status.RUNNING)
    if met_row(session, asked.values(values)) and ready != job.ready:
        told = "Service replica ready" if ready else "Service replica not ready any more"
        timeline.tell(session, f"{told} to receive requests", timeline.of_job(job, job.run))


def note_waiting(session: Session, job: RunJob, why: str) -> None:
    """Tells, once, that a submitted job waits for a place."""
    asked: Update = update(RunJob).where(
        RunJob.id == job.id,
        RunJob.status == Status.SUBMITTED,
        RunJob.processed_us == RunJob.submitted_us,
    )
    if met_row(session, asked.values(processed_us=now_us())):
        timeline.tell(session, f"Job waits for room: {why}", timeline.of_job(job, job.run))


def take_over(session: Session, job: RunJob, deployment_num: int) -> None:
    """Counts a job to another deployment, which asks nothing else of it."""
    asked: Update = update(RunJob).where(
        RunJob.id == job.id, RunJob.deployment_num == job.deployment_num
    )
    met_row(session, asked.values(deployment_num=deployment_num))
    session.refresh(job, ["deployment_num"])


def submit_job(
    session: Session, run: Run, spec: dict[str, Any], submission_num: int, why: str
) -> RunJob:
    """Makes a submission of a job, whose spec is sealed."""
    job = _new_job(run, spec, submission_num=submission_num)
    session.add(job)
    said = f"Job created on {why}. Status: SUBMITTED"
    timeline.tell(session, said, timeline.of_job(job, run))
    return job


def sort_jobs(session: Session, run: Run) -> None:
    """Brings the jobs of a run, to which some were added, in the order in which they are read."""
    session.flush()
    run.jobs.sort(key=lambda job: (job.replica_num, job.job_num, job.submission_num))


def _new_job(run: Run, spec: dict[str, Any], *, submission_num: int) -> RunJob:
    now = now_us()
    return RunJob(
        id=new_id(),
        run_id=run.id,
        run=run,
        job_num=spec["job_num"],
        replica_num=spec["replica_num"],
        submission_num=submission_num,
        deployment_num=run.deployment_num,
        name=spec["job_name"],
        spec=spec,
        status=Status.SUBMITTED,
        ready=False,
        submitted_us=now,
        processed_us=now,
    )


# Fleets ----------------------------------------------------------------------------------------


def fleet_named(session: Session, project: Project, name: str) -> Fleet | None:
    """The fleet of that name."""
    return next(iter(fleets_named(session, project, [name])), None)


def fleets_named(session: Session, project: Project, names: Iterable[str]) -> Sequence[Fleet]:
    """The fleets of those names; a name without one is left out."""
    asked = select(Fleet).where(
        Fleet.project_id == project.id, Fleet.name.in_(set(names)), Fleet.deleted.is_(False)
    )
    return session.scalars(asked).all()


def fleets_of(session: Session, project_ids: Sequence[str]) -> Sequence[Fleet]:
    """The fleets of projects, the oldest first."""
    asked = select(Fleet).where(Fleet.project_id.in_(project_ids), Fleet.deleted.is_(False))
    return session.scalars(asked.order_by(Fleet.created_us, Fleet.id)).all()


def add_fleet(session: Session, project: Project, caller: Caller, spec: dict[str, Any]) -> Fleet:
    """Makes a fleet; its instances come by themselves."""
    fleet = Fleet(
        id=new_id(),
        project=project,
        project_id=project.id,
        user_id=caller.user_id,
        name=spec["configuration"]["name"],
        spec=spec,
        status=Status.ACTIVE,
        deleted=False,
        created_us=now_us(),
    )
    session.add(fleet)
    session.flush()
    timeline.tell(session, "Fleet created. Status: ACTIVE", timeline.of_fleet(fleet), by=caller)
    return fleet


def live(fleet: Fleet) -> list[Instance]:
    """The instances of a fleet that are there or on their way in or out."""
    return [each for each in fleet.instances if each.finished_us is None]


def tell_instance(session: Session, message: str, instance: Instance, job: RunJob | None) -> None:
    """An event of an instance, and of the job that it is about."""
    targets: list[Target] = [timeline.of_instance(instance)]
    if job is not None:
        targets.append(timeline.of_job(job, job.run))
    timeline.tell(session, message, *targets)


def add_instance(
    session: Session, fleet: Fleet, num: int, size: Size, idle_duration_s: int | None
) -> Instance:
    """Makes an instance of a fleet; its VM comes later."""
    instance = Instance(
        id=new_id(),
        fleet=fleet,
        num=num,
        name=f"{fleet.name}-{num}",
        size=size.as_json(),
        status=Status.PENDING,
        idle_duration_s=idle_duration_s,
        created_us=now_us(),
    )
    session.add(instance)
    session.flush()
    session.refresh(fleet, ["instances"])
    return instance


def last_failure(session: Session, fleet: Fleet) -> int:
    """When an instance of a fleet last ended otherwise than it should, in microseconds; 0: never."""
    asked = select(func.max(Instance.finished_us)).where(
        Instance.fleet_id == fleet.id, Instance.termination_reason.not_in(ENDED_WELL)
    )
    return session.scalar(asked) or 0


def job_with_run(session: Session, job_id: str) -> RunJob | None:
    """A job with its run and all that belongs to it."""
    of_run = select(RunJob.run_id).where(RunJob.id == job_id).scalar_subquery()
    run = session.scalar(select(Run).where(Run.id == of_run).options(*run_parts()))
    if run is None:
        return None
    job = next(each for each in run.jobs if each.id == job_id)
    # Held by the job: a session by itself forgets what nobody holds.
    set_committed_value(job, "run", run)
    return job


def unfinished_runs(session: Session) -> Sequence[Run]:
    """The runs that something may still happen to, the most urgent first."""
    asked = select(Run).where(Run.status.in_(lifecycle.unfinished(Kind.RUN)))
    asked = asked.order_by(Run.priority.desc(), Run.submitted_us, Run.id)
    return session.scalars(asked.options(*run_parts())).unique().all()


def unfinished_jobs_on(session: Session, instance_id: str) -> list[str]:
    """The ids of the jobs that an instance has."""
    asked = select(RunJob.id).where(
        RunJob.instance_id == instance_id, RunJob.status.in_(lifecycle.unfinished(Kind.JOB))
    )
    return list(session.scalars(asked))


def live_instances(session: Session) -> Sequence[Instance]:
    """The instances of all fleets that are not gone."""
    asked = select(Instance).where(Instance.finished_us.is_(None)).order_by(Instance.created_us)
    return session.scalars(asked).unique().all()


def instance_of_vm(session: Session, vm_id: str) -> Instance | None:
    """The instance whose VM this is."""
    return session.scalar(
        select(Instance).where(Instance.vm_id == vm_id, Instance.finished_us.is_(None))
    )


def present_fleets(session: Session) -> Sequence[Fleet]:
    """All fleets that are not gone."""
    return session.scalars(select(Fleet).where(Fleet.deleted.is_(False))).all()


def vm_named(session: Session, name: str, project_id: str) -> str | None:
    """The id of a project's VM with a name."""
    return session.scalar(select(Vm.id).where(Vm.name == name, Vm.project_id == project_id))


def has_vm(session: Session, vm_id: str) -> bool:
    """Whether a VM still has its record."""
    return session.scalar(select(Vm.id).where(Vm.id == vm_id)) is not None
