"""The verbs of fleets: what is wished is written here, and runs/scheduler.py makes the instances follow."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from sqlalchemy import select
from sqlalchemy.orm import Session

from accounts.roles import Caller, ProjectRole
from core.errors import Invalid
from models.account import Project
from models.base import Database
from models.fleet import Fleet, Instance
from models.run import Run, RunJob
from runs import access, description, lifecycle, names, planner, records, refusals, timeline
from runs.cursor import Cursor
from runs.description import Answer
from runs.lifecycle import Kind, Status
from runs.sizes import Size, candidates, offer
from runs.specs import NAME_RULE, Spec, check_size, is_name

# An offer list of a plan is cut here, its count is not.
MAX_OFFERS = 50


@dataclass(frozen=True)
class ListQuery:
    """Which part of a list: the first `limit` behind a time and an id."""

    only_active: bool = False
    prev_created_at: int | None = None
    prev_id: str | None = None
    limit: int = 100
    ascending: bool = False

    @property
    def cursor(self) -> Cursor:
        """The place and the size of the part."""
        return Cursor(self.prev_created_at, self.prev_id, self.limit, self.ascending)


@dataclass(frozen=True)
class Fleets:
    """The fleets of one data directory, on a host that gives such sizes and that clients know as `hostname`."""

    database: Database
    sizes: Sequence[Size]
    hostname: str

    def plan(self, caller: Caller, project_name: str, spec: Spec) -> Answer:
        """What applying a spec would do."""
        _check(spec)
        with self.database.reading() as session:
            project = access.project(session, caller, project_name)
            name = spec["configuration"]["name"]
            current = records.fleet_named(session, project, name) if name else None
            effective = planner.effective_fleet(spec, self.sizes, name=name)
            offers = self.offers(effective)
            return {
                "project_name": project.name,
                "user": caller.name,
                "spec": spec,
                "effective_spec": effective,
                "current_resource": current and self._fleet(current),
                "offers": [offer(size.as_json()) for size in offers[:MAX_OFFERS]],
                "total_offers": len(offers),
                "max_offer_price": max((size.price for size in offers), default=None),
                "action": _action(current, effective),
            }

    def offers(self, spec: Spec) -> list[Size]:
        """The sizes that an instance of a fleet may have, the best first."""
        return fleet_sizes(spec, self.sizes)

    def apply(
        self, caller: Caller, project_name: str, spec: Spec, current: Answer | None, force: bool
    ) -> Answer:
        """Makes a fleet, or changes one where that is possible without making it anew."""
        _check(spec)
        with self.database.writing() as session:
            project = access.project(session, caller, project_name, ProjectRole.USER)
            name = spec["configuration"]["name"] or names.for_fleet(_names(session, project))
            effective = planner.effective_fleet(spec, self.sizes, name=name)
            row = records.fleet_named(session, project, name)
            if row is None:
                return self._fleet(records.add_fleet(session, project, caller, effective))
            _check_update(row, effective, current, force)
            if row.spec != effective:
                row.spec = effective
                timeline.tell(session, "Fleet updated", timeline.of_fleet(row), by=caller)
            return self._fleet(row)

    def get(
        self, caller: Caller, project_name: str, name: str | None, fleet_id: str | None
    ) -> Answer:
        """A fleet by its id, which also finds one that is gone, or by its name."""
        with self.database.reading() as session:
            project = access.project(session, caller, project_name)
            if fleet_id is not None:
                row = session.get(Fleet, fleet_id)
                row = row if row is not None and row.project_id == project.id else None
            elif name is not None:
                row = records.fleet_named(session, project, name)
            else:
                raise Invalid("name or id must be specified")
            if row is None:
                raise refusals.missing("Resource")
            return self._fleet(row)

    def of_project(self, caller: Caller, project_name: str) -> list[Answer]:
        """The fleets of a project, the oldest first."""
        with self.database.reading() as session:
            project = access.project(session, caller, project_name)
            return [self._fleet(row) for row in records.fleets_of(session, [project.id])]

    def search(self, caller: Caller, project_name: str | None, query: ListQuery) -> list[Answer]:
        """The fleets of the projects that a caller sees, or of one of them."""
        with self.database.reading() as session:
            asked = select(Fleet).where(Fleet.project_id.in_(_seen(session, caller, project_name)))
            if query.only_active:
                asked = asked.where(Fleet.deleted.is_(False))
            rows = session.scalars(query.cursor.page(asked, Fleet.created_us, Fleet.id)).all()
            return [self._fleet(row) for row in rows]

    def instances(
        self,
        caller: Caller,
        projects: Sequence[str] | None,
        fleets: Sequence[str] | None,
        query: ListQuery,
    ) -> list[Answer]:
        """The instances of the projects that a caller sees."""
        with self.database.reading() as session:
            seen = access.visible(session, caller)
            asked = select(Instance).join(Instance.fleet).join(Fleet.project)
            asked = asked.where(Fleet.project_id.in_(seen))
            if projects is not None:
                asked = asked.where(Project.name.in_(projects))
            if fleets is not None:
                asked = asked.where(Fleet.id.in_(fleets))
            if query.only_active:
                asked = asked.where(Instance.finished_us.is_(None))
            rows = (
                session.scalars(query.cursor.page(asked, Instance.created_us, Instance.id))
                .unique()
                .all()
            )
            return [self._instance(row) for row in rows]

    def instance(self, caller: Caller, project_name: str, instance_id: str) -> Answer:
        """An instance by its id."""
        with self.database.reading() as session:
            project = access.project(session, caller, project_name)
            row = session.get(Instance, instance_id)
            if row is None or row.fleet.project_id != project.id:
                raise refusals.missing("Instance")
            return self._instance(row)

    def instance_numbered(
        self, caller: Caller, project_name: str, fleet_name: str, num: int
    ) -> Answer:
        """An instance by its number in a fleet."""
        with self.database.reading() as session:
            project = access.project(session, caller, project_name)
            fleet = records.fleet_named(session, project, fleet_name)
            for row in records.live(fleet) if fleet else ():
                if row.num == num:
                    return self._instance(row)
            raise refusals.missing("Instance")

    def delete(self, caller: Caller, project_name: str, fleet_names: Iterable[str]) -> None:
        """Marks fleets for removal, all or none; unknown names are ignored, fleets in use refused."""
        with self.database.writing() as session:
            project = access.project(session, caller, project_name)
            for row in records.fleets_named(session, project, fleet_names):
                _check_unused(session, row)
                records.move_fleet(session, row, Status.TERMINATING, by=caller)

    def delete_instances(
        self, caller: Caller, project_name: str, name: str, nums: Sequence[int]
    ) -> None:
        """Marks instances of a fleet for removal, all or none; busy ones are refused."""
        with self.database.writing() as session:
            project = access.project(session, caller, project_name)
            row = records.fleet_named(session, project, name)
            if row is None:
                raise refusals.missing("Resource")
            chosen = [each for each in records.live(row) if each.num in set(nums)]
            if any(each.status == Status.BUSY for each in chosen) or _is_awaited(session, chosen):
                raise refusals.refused(f"Failed to delete fleet {name} instances. They are in use.")
            for each in chosen:
                records.move_instance(
                    session, each, Status.TERMINATING, reason="terminated_by_user", by=caller
                )

    def _fleet(self, row: Fleet) -> Answer:
        return description.fleet(row, self.hostname)

    def _instance(self, row: Instance) -> Answer:
        return description.instance(row, row.fleet, self.hostname)


def fleet_sizes(spec: Spec, sizes: Sequence[Size]) -> list[Size]:
    """The sizes that an instance of a fleet may have, the best first."""
    configuration = planner.merged(spec)
    resources = configuration["resources"]
    if resources is None:
        return list(sizes)
    return candidates(configuration, resources, sizes)


def _check(spec: Spec) -> None:
    check_size(spec, "spec")
    configuration = spec["configuration"]
    name = configuration["name"]
    if configuration["ssh_config"] is not None:
        raise refusals.unsupported("SSH fleets")
    if configuration["env"]:  # of their hosts; a run has its own
        raise refusals.unsupported("env of a fleet")
    if configuration["blocks"] not in (1, "auto"):
        raise refusals.unsupported("blocks")
    if configuration["nodes"] is None:
        raise Invalid("One of `nodes` and `ssh_config` must be specified")
    if name is not None and not is_name(name):
        raise Invalid(NAME_RULE)


def _action(current: Fleet | None, effective: Spec) -> str:
    if current is None or current.status == Status.TERMINATING:
        return "create"
    return "update" if planner.is_updatable_fleet(current.spec, effective) else "create"


def _check_update(row: Fleet, effective: Spec, current: Answer | None, force: bool) -> None:
    if row.status == Status.TERMINATING:
        raise refusals.refused(f"Fleet {row.name} is being deleted. Try again when it is gone.")
    if not planner.is_updatable_fleet(row.spec, effective):
        raise refusals.refused("Cannot override active fleet. Delete the fleet first.")
    is_known = current is not None and current["id"] == row.id and current.get("spec") == row.spec
    if not is_known and not force:
        raise refusals.outrun()


def _check_unused(session: Session, row: Fleet) -> None:
    active = select(Run.id).where(
        Run.fleet_id == row.id, Run.status.in_(lifecycle.unfinished(Kind.RUN))
    )
    if session.scalar(active.limit(1)):
        raise refusals.refused(f"Failed to delete fleet {row.name}. Fleet is in use.")


def _is_awaited(session: Session, instances: Sequence[Instance]) -> bool:
    waiting = select(RunJob.id).where(
        RunJob.instance_id.in_([each.id for each in instances]),
        RunJob.status.in_(lifecycle.unfinished(Kind.JOB)),
    )
    return session.scalar(waiting.limit(1)) is not None


def _names(session: Session, project: Project) -> set[str]:
    return set(session.scalars(select(Fleet.name).where(Fleet.project_id == project.id)))


def _seen(session: Session, caller: Caller, project_name: str | None) -> Sequence[str]:
    if project_name is None:
        return access.visible(session, caller)
    return [access.project(session, caller, project_name).id]
