"""The timeline: events are written in the transaction of what they tell, and read by target or by what is within."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Select, and_, false, func, or_, select
from sqlalchemy.orm import Session

from accounts.roles import Caller
from models.account import Project, User
from models.event import Event, EventTarget
from models.fleet import Fleet, Instance
from models.run import Run, RunJob
from runs.cursor import Cursor
from runs.moments import now_us


@dataclass(frozen=True)
class Target:
    """What an event is about; `within` is the run of a job, or the fleet of an instance."""

    type: str
    id: str
    name: str
    project: Project | None = None
    within: str | None = None


def of_project(project: Project) -> Target:
    """A project as a target."""
    return Target("project", project.id, project.name, project)


def of_user(user: User) -> Target:
    """A user as a target."""
    return Target("user", user.id, user.name)


def of_fleet(fleet: Fleet) -> Target:
    """A fleet as a target."""
    return Target("fleet", fleet.id, fleet.name, fleet.project)


def of_instance(instance: Instance) -> Target:
    """An instance as a target."""
    return Target(
        "instance", instance.id, instance.name, instance.fleet.project, within=instance.fleet_id
    )


def of_run(run: Run) -> Target:
    """A run as a target."""
    return Target("run", run.id, run.name, run.project)


def of_job(job: RunJob, run: Run) -> Target:
    """A job as a target."""
    return Target("job", job.id, job.name, run.project, within=run.id)


def tell(
    session: Session,
    message: str,
    *targets: Target,
    by: Caller | None = None,
    at: int | None = None,
) -> None:
    """Writes an event; without `by` it is the service's own doing."""
    moment = at or now_us()
    event = Event(
        id=str(uuid.uuid4()),
        message=message,
        recorded_us=moment,
        actor_id=by and by.user_id,
        actor_name=by and by.name,
    )
    event.targets = [
        EventTarget(
            position=position,
            type=target.type,
            target_id=target.id,
            name=target.name,
            within_id=target.within,
            project_id=target.project and target.project.id,
            project_name=target.project and target.project.name,
            recorded_us=moment,
        )
        for position, target in enumerate(targets)
    ]
    session.add(event)


@dataclass(frozen=True)
class Query:
    """Which events to list: of targets of one type, or within projects, fleets or runs."""

    target_type: str | None = None
    target_ids: Sequence[str] = ()
    within_type: str | None = None
    within_ids: Sequence[str] = ()
    types: Sequence[str] | None = None
    actors: Sequence[str | None] | None = None
    before: tuple[int | None, str | None] = (None, None)
    limit: int = 100
    ascending: bool = False


def read(
    session: Session, query: Query, seen: Sequence[str] | None, user_id: str
) -> Sequence[Event]:
    """The events that match; of the projects in `seen` and of the user alone, or of all where that is None."""
    asked = _about(select(Event), query, seen, user_id)
    if query.actors is not None:
        known = [actor for actor in query.actors if actor is not None]
        system = Event.actor_id.is_(None) if None in query.actors else false()
        asked = asked.where(or_(Event.actor_id.in_(known), system))
    cursor = Cursor(*query.before, query.limit, query.ascending)
    return session.scalars(cursor.page(asked, Event.recorded_us, Event.id)).all()


def _about(
    asked: Select[Any], query: Query, seen: Sequence[str] | None, user_id: str
) -> Select[Any]:
    told = select(EventTarget.event_id)
    # The function keeps SQLite from looking up all events of a project to find one event's.
    project = func.ifnull(EventTarget.project_id, "")
    if seen is not None:
        told = told.where(
            or_(
                project.in_(seen),
                and_(EventTarget.type == "user", EventTarget.target_id == user_id),
            )
        )
    if query.target_type is not None:
        told = told.where(
            EventTarget.type == query.target_type, EventTarget.target_id.in_(query.target_ids)
        )
    if query.within_type == "project":
        told = told.where(project.in_(query.within_ids))
    elif query.within_type is not None:
        told = told.where(
            or_(
                EventTarget.within_id.in_(query.within_ids),
                EventTarget.target_id.in_(query.within_ids),
            )
        )
    if query.types is not None:
        told = told.where(EventTarget.type.in_(query.types))
    if query.target_type is None and query.within_type in (None, "project"):
        # Most events match: they are tried from the newest on, and none that a page does not need.
        return asked.where(told.where(EventTarget.event_id == Event.id).exists())
    return asked.where(Event.id.in_(told))


def query_of(asked: Mapping[str, Any]) -> Query:
    """What a request of events/list asks for."""
    target = next((name for name in asked if name.startswith("target_") and asked[name]), None)
    within = next((name for name in asked if name.startswith("within_") and asked[name]), None)
    return Query(
        target_type=target and _singular(target.removeprefix("target_")),
        target_ids=asked[target] if target else (),
        within_type=within and _singular(within.removeprefix("within_")),
        within_ids=asked[within] if within else (),
        types=asked["include_target_types"],
        actors=asked["actors"],
        before=(asked["prev_recorded_at"], asked["prev_id"]),
        limit=asked["limit"],
        ascending=asked["ascending"],
    )


def _singular(name: str) -> str:
    return name.removesuffix("s").replace("_", "-")
