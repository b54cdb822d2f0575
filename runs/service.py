"""The verbs of runs: plans, submissions, stops, lists, logs and events.

A verb writes the wish; runs/scheduler.py, in one process of the host, makes the jobs follow.
"""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.orm import Session

from accounts import keypairs
from accounts.keypairs import Safe
from accounts.roles import Caller
from core.config import Config
from core.errors import Invalid
from models.account import Project, User
from models.base import Database
from models.fleet import Fleet, Instance
from models.run import Run, RunJob
from runs import (
    access,
    description,
    lifecycle,
    names,
    planner,
    records,
    refusals,
    rules,
    sealing,
    timeline,
)
from runs.cursor import Cursor
from runs.description import Answer
from runs.fleets import Fleets, fleet_sizes
from runs.jobs import counts, job_specs
from runs.lifecycle import Kind, Reason, Status
from runs.logs import empty_page, log_of
from runs.moments import written
from runs.people import People
from runs.sizes import Room, Size, candidates, fits, holds, offer, room_of, sizes_of
from runs.specs import Spec

DEFAULT_OFFERS = 50
# The image that stands for none: only offers are wanted, no registry is asked.
SCRATCH = "scratch"


@dataclass(frozen=True)
class RunsQuery:
    """Which runs to list."""

    project_name: str | None = None
    repo_id: str | None = None
    username: str | None = None
    only_active: bool = False
    include_jobs: bool = True
    job_submissions_limit: int | None = None
    prev_submitted_at: int | None = None
    prev_run_id: str | None = None
    limit: int = 100
    ascending: bool = False


@dataclass(frozen=True)
class LogQuery:
    """Which part of a job's output."""

    run_name: str
    job_submission_id: str
    start_time: int | None = None
    end_time: int | None = None
    descending: bool = False
    next_token: str | None = None
    limit: int = 100
    diagnose: bool = False


@dataclass(frozen=True)
class Output:
    """Some bytes that a job said; `end` is where to go on, `is_over`: there is nothing more, nor will be."""

    data: bytes
    end: int
    is_over: bool


@dataclass(frozen=True)
class Runs:
    """The runs of one data directory."""

    config: Config
    database: Database
    room: Room
    sizes: Sequence[Size]
    people: People
    fleets: Fleets

    @classmethod
    def of(cls, config: Config, database: Database) -> Runs:
        """The runs of a configuration."""
        room = room_of(config)
        sizes = sizes_of(config.offers, room)
        people = People(database, Safe.of(config.data_dir))
        fleets = Fleets(database, sizes, config.runs.hostname)
        return cls(config, database, room, sizes, people, fleets)

    # Verbs -------------------------------------------------------------------------------------

    def plan(
        self,
        caller: Caller,
        project_name: str,
        spec: Spec,
        max_offers: int | None,
        *,
        reverse: bool = False,
    ) -> Answer:
        """What applying a spec would do, and the offers for its jobs."""
        rules.check(spec)
        self._make_pair(caller)
        with self.database.reading() as session:
            project = access.project(session, caller, project_name)
            effective = self._effective(session, caller, spec, name=spec["run_name"])
            name = effective["run_name"]
            current = records.run_named(session, project, name) if name else None
            offers = self.offers(session, project, effective)
            shown = list(reversed(offers) if reverse else offers)[: max_offers or DEFAULT_OFFERS]
            return {
                "project_name": project.name,
                "user": caller.name,
                "run_spec": spec,
                "effective_run_spec": effective,
                "job_plans": [
                    {
                        "job_spec": job,
                        "offers": shown,
                        "total_offers": len(offers),
                        "max_price": max((each["price"] for each in offers), default=None),
                    }
                    for job in job_specs(effective, 0)
                ],
                "current_resource": current and self._shown(current),
                "action": _action(current, effective, self.safe),
            }

    def offers(self, session: Session, project: Project, spec: Spec) -> list[Answer]:
        """The offers for each job of a run: the instances of its fleets first, then sizes that the host has."""
        configuration, (_, nodes) = planner.merged(spec), counts(spec)
        resources = configuration["resources"]
        fitting = candidates(configuration, resources, self.sizes)
        held = [size for size in fitting if holds(self.room, size, nodes)]
        wanted = configuration["fleets"]
        if wanted is None and configuration["image"] == SCRATCH:
            return [offer(size.as_json()) for size in held]
        fleets = chosen_fleets(session, project, spec)
        there = [
            offer(each.size, each.status)
            for fleet in fleets
            for each in records.live(fleet)
            if each.status in (Status.IDLE, Status.BUSY) and _fits(each, resources)
        ]
        allowed = {size.name for fleet in fleets for size in fleet_sizes(fleet.spec, self.sizes)}
        there.sort(key=lambda each: each["availability"] == "busy")
        return there + [offer(size.as_json()) for size in held if size.name in allowed]

    def apply(
        self, caller: Caller, project_name: str, spec: Spec, current: Answer | None, force: bool
    ) -> Answer:
        """Submits a run, or changes an active one where that is possible."""
        rules.check(spec)
        self._make_pair(caller)
        with self.database.writing() as session:
            project = access.project(session, caller, project_name)
            name = spec["run_name"] or spec["configuration"]["name"]
            if name is None:
                name = names.for_run(_names(session, project))
            effective = self._effective(session, caller, spec, name=name)
            row = records.run_named(session, project, name)
            if row is not None and not lifecycle.is_finished(Kind.RUN, row.status):
                _update(session, caller, row, effective, current, force, self.safe)
            else:
                if row is not None:
                    row.deleted = True
                    session.flush()
                run_id = records.add_run(session, project, caller, effective, self.safe).id
                row = _with_parts(session, run_id)
            return self._shown(row)

    def stop(
        self, caller: Caller, project_name: str, run_names: Iterable[str], abort: bool
    ) -> None:
        """Wishes that runs end; unknown and finished ones are ignored."""
        reason = Reason.ABORTED_BY_USER if abort else Reason.STOPPED_BY_USER
        with self.database.writing() as session:
            project = access.project(session, caller, project_name)
            for row in records.runs_named(session, project, run_names):
                if lifecycle.is_finished(Kind.RUN, row.status):
                    continue
                moved = records.move_run(session, row, Status.TERMINATING, reason=reason, by=caller)
                if not moved and abort and row.termination_reason == Reason.STOPPED_BY_USER:
                    # Who waits for a stop may lose patience.
                    row.termination_reason = reason
                    told = "Run stop hastened. Termination reason: ABORTED_BY_USER"
                    timeline.tell(session, told, timeline.of_run(row), by=caller)

    def delete(self, caller: Caller, project_name: str, run_names: Iterable[str]) -> None:
        """Marks finished runs deleted, all or none; unknown ones are ignored."""
        with self.database.writing() as session:
            project = access.project(session, caller, project_name)
            rows = records.runs_named(session, project, run_names)
            active = [r.name for r in rows if not lifecycle.is_finished(Kind.RUN, r.status)]
            if active:
                raise refusals.refused(f"Cannot delete active runs: {', '.join(sorted(active))}")
            for row in rows:
                row.deleted = True
                timeline.tell(session, "Run deleted", timeline.of_run(row), by=caller)

    def init_repo(self, caller: Caller, project_name: str, repo: Spec) -> None:
        """Takes note of where code comes from: nowhere is all that is taken."""
        with self.database.reading() as session:
            access.project(session, caller, project_name)
        if repo["repo_type"] != "virtual":
            raise refusals.unsupported("repositories")

    # Questions ---------------------------------------------------------------------------------

    def get(
        self, caller: Caller, project_name: str, name: str | None, run_id: str | None
    ) -> Answer:
        """A run by its id, which also finds a deleted one, or by its name."""
        with self.database.reading() as session:
            project = access.project(session, caller, project_name)
            if run_id is not None:
                asked = select(Run).where(Run.id == run_id, Run.project_id == project.id)
                row = session.scalar(asked.options(*records.run_parts()))
            elif name is not None:
                row = records.run_named(session, project, name)
            else:
                raise Invalid("run_name or id must be specified")
            if row is None:
                raise refusals.missing("Run")
            return self._shown(row)

    def search(self, caller: Caller, query: RunsQuery) -> list[Answer]:
        """The runs that match, the newest first."""
        with self.database.reading() as session:
            if query.project_name is not None:
                seen: Sequence[str] = [access.project(session, caller, query.project_name).id]
            else:
                seen = access.visible(session, caller)
            if query.repo_id is not None and query.project_name is None:
                return []
            rows = session.scalars(_listed(query, seen)).unique().all()
            limit = query.job_submissions_limit
            return [
                self._shown(row, with_jobs=query.include_jobs, submissions=limit) for row in rows
            ]

    def gpus(self, caller: Caller, project_name: str) -> Answer:
        """The GPUs of the offers, grouped: this host lends none to runs."""
        with self.database.reading() as session:
            access.project(session, caller, project_name)
        return {"gpus": [], "cpus": None}

    def nothing(self, caller: Caller, project_name: str | None = None) -> list[Answer]:
        """The list of a kind of thing that there is none of; only its project is looked at."""
        if project_name is not None:
            with self.database.reading() as session:
                access.project(session, caller, project_name)
        return []

    def logs(self, caller: Caller, project_name: str, query: LogQuery) -> Answer:
        """A part of what a job said; an unknown job said nothing."""
        with self.database.reading() as session:
            project = access.project(session, caller, project_name)
            asked = select(Run.id).join(Run.jobs).where(RunJob.id == query.job_submission_id)
            asked = asked.where(Run.project_id == project.id, Run.name == query.run_name)
            run_id = session.scalar(asked)
        if run_id is None:
            page = empty_page(query.next_token)
        else:
            log = log_of(self.config.data_dir, query.job_submission_id, diagnose=query.diagnose)
            page = log.page(
                query.limit,
                token=query.next_token,
                after_us=query.start_time,
                before_us=query.end_time,
                descending=query.descending,
            )
        return {
            "logs": [
                {
                    "timestamp": written(entry.moment_us),
                    "log_source": "stdout",
                    "message": base64.b64encode(entry.data).decode(),
                }
                for entry in page.entries
            ],
            "external_url": None,
            "next_token": page.token,
        }

    def output(
        self, caller: Caller, project_name: str, submission_id: str, after: int, limit: int = 1000
    ) -> Output:
        """What a job said behind a place in its log, 0 for its beginning."""
        with self.database.reading() as session:
            project = access.project(session, caller, project_name)
            asked = select(RunJob.status).join(RunJob.run)
            status = session.scalar(
                asked.where(RunJob.id == submission_id, Run.project_id == project.id)
            )
        if status is None:
            raise refusals.missing("Job")
        page = log_of(self.config.data_dir, submission_id).page(limit, token=str(after))
        end = page.entries[-1].end if page.entries else after
        is_over = page.token is None and lifecycle.is_finished(Kind.JOB, status)
        return Output(b"".join(entry.data for entry in page.entries), end, is_over)

    def events(self, caller: Caller, query: timeline.Query) -> list[Answer]:
        """The events that match and that the caller may see."""
        with self.database.reading() as session:
            seen = None if caller.is_operator else access.visible(session, caller)
            rows = timeline.read(session, query, seen, caller.user_id)
            projects = {t.project_id for row in rows for t in row.targets if t.project_id}
            actors = {row.actor_id for row in rows if row.actor_id}
            gone_projects = projects - set(
                session.scalars(select(Project.id).where(Project.id.in_(projects)))
            )
            gone_users = actors - set(session.scalars(select(User.id).where(User.id.in_(actors))))
            return [description.event(row, gone_projects, gone_users) for row in rows]

    def _make_pair(self, caller: Caller) -> None:
        """Gives a caller who has none the key pair that every spec carries."""
        with self.database.reading() as session:
            pair = keypairs.built_in(session, access.user(session, caller))
        if pair is None:
            self.people.me(caller, "")

    @property
    def safe(self) -> Safe:
        """What secrets of specs are sealed with."""
        return self.people.safe

    def _shown(self, row: Run, *, with_jobs: bool = True, submissions: int | None = None) -> Answer:
        return description.run(row, self.safe, with_jobs=with_jobs, submissions=submissions)

    def _effective(self, session: Session, caller: Caller, spec: Spec, *, name: str | None) -> Spec:
        pair = keypairs.built_in(session, access.user(session, caller))
        name = name or spec["configuration"]["name"]
        key = pair.public_key if pair else None
        return planner.effective(spec, self.sizes, name=name, public_key=key)


def chosen_fleets(session: Session, project: Project, spec: Spec) -> list[Fleet]:
    """The fleets of a project that a run may use, those it names or all, whose template could hold it."""
    wanted = planner.merged(spec)["fleets"]
    active = [
        fleet
        for fleet in records.fleets_of(session, [project.id])
        if fleet.status != Status.TERMINATING
    ]
    if wanted is None:
        return active
    own = [each["name"] for each in wanted if each["project"] in (None, project.name)]
    return [fleet for fleet in active if fleet.name in own]


def _fits(instance: Instance, resources: Spec) -> bool:
    return fits(Size(**instance.size), resources)


def _action(current: Run | None, effective: Spec, safe: Safe) -> str:
    if current is None or lifecycle.is_finished(Kind.RUN, current.status):
        return "create"
    before = sealing.unseal(current.spec, safe, current.id)
    return "update" if planner.is_updatable(before, effective) else "create"


def _update(
    session: Session,
    caller: Caller,
    row: Run,
    effective: Spec,
    current: Answer | None,
    force: bool,
    safe: Safe,
) -> None:
    """Changes an active run in place."""
    before = sealing.unseal(row.spec, safe, row.id)
    if not planner.is_updatable(before, effective) or row.status == Status.TERMINATING:
        raise refusals.refused("Cannot override active run. Stop the run first.")
    is_known = current is not None and current["id"] == row.id and current.get("run_spec") == before
    if not is_known and not force:
        raise refusals.outrun()
    if before != effective:
        fields = ", ".join(planner.changes(before, effective))
        told = f"Run updated. Deployment: {row.deployment_num + 1}. Changed fields: {fields}"
        if not records.change_run(session, row, effective, safe, told, caller):
            raise refusals.outrun()


def _names(session: Session, project: Project) -> set[str]:
    asked = select(Run.name).where(Run.project_id == project.id, Run.deleted.is_(False))
    return set(session.scalars(asked))


def _with_parts(session: Session, run_id: str) -> Run:
    asked = select(Run).where(Run.id == run_id).options(*records.run_parts())
    return session.scalars(asked.execution_options(populate_existing=True)).one()


def _listed(query: RunsQuery, seen: Sequence[str]) -> Any:
    asked = select(Run).where(Run.project_id.in_(seen)).options(*records.run_parts())
    if query.username is not None:
        asked = asked.join(Run.user).where(User.name == query.username)
    if query.only_active:
        asked = asked.where(Run.status.in_(lifecycle.unfinished(Kind.RUN)), Run.deleted.is_(False))
    if query.repo_id is not None:
        asked = asked.where(Run.spec["repo_id"].as_string() == query.repo_id)
    place = (query.prev_submitted_at, query.prev_run_id)
    return Cursor(*place, query.limit, query.ascending).page(asked, Run.submitted_us, Run.id)
