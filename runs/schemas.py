"""The requests of the runs interface (runs.md section 4); its answers are in answers.py."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from marshmallow import EXCLUDE, Schema, fields, pre_load, validate, validates_schema

from runs import refusals
from runs.bodies import Body, optional
from runs.fields import Choice, Flag, Items, Moment, Part, Text, Uuid, Whole, bad
from runs.specs import AnyRepo, FleetSpec, RunSpec


class OptionalBody(Body):
    """A body that may also be empty or null."""

    @pre_load
    def _accept(self, data: Any, **kwargs: Any) -> Any:
        return {} if data is None else data


def left_out(what: str) -> fields.Field[Any]:
    """A field that must be null: there is no such thing here."""

    def refuse(_: str) -> None:
        raise refusals.unsupported(what)

    return optional(Text, validate=refuse)


class Cursor(OptionalBody):
    """The place in a list behind which a page begins."""

    prev_created_at = optional(Moment)
    prev_id = optional(Uuid)
    ascending = Flag(load_default=False)


# Users and projects ----------------------------------------------------------------------------

_PATTERN = validate.Regexp(
    r"^[a-zA-Z0-9-_]*\Z", error="String should match pattern '^[a-zA-Z0-9-_]*$'"
)


class ListUsers(Cursor):
    """A page of users."""

    return_total_count = Flag(load_default=False)
    name_pattern = optional(Text, validate=_PATTERN)
    limit = Whole(0, 2000, load_default=2000)


class Username(Body):
    """One user."""

    username = Text(required=True)


class UserFields(Body):
    """A user to make or to change."""

    username = Text(required=True)
    global_role = Choice("admin", "user", required=True)
    email = optional(Text)
    active = Flag(load_default=True)


class UserNames(Body):
    """Some users."""

    users = Items(Text(), required=True)


class NewPublicKey(Body):
    """A public key as OpenSSH writes it."""

    key = Text(required=True)
    name = optional(Text)


class KeyIds(Body):
    """Some keys."""

    ids = Items(Uuid(), required=True)


class ListProjects(Cursor):
    """A page of projects."""

    include_not_joined = Flag(load_default=True)
    username = optional(Text)
    return_total_count = Flag(load_default=False)
    name_pattern = optional(Text, validate=_PATTERN)
    limit = Whole(0, 2000, load_default=2000)


class NewProject(Body):
    """A project to make."""

    project_name = Text(required=True)
    is_public = Flag(load_default=False)
    templates_repo = left_out("templates")


class ProjectChange(Body):
    """What changes of a project."""

    is_public = optional(Flag)
    templates_repo = left_out("templates")
    reset_templates_repo = Flag(load_default=False)


class ProjectNames(Body):
    """Some projects."""

    projects_names = Items(Text(), required=True)


class MemberSetting(Body):
    """A user's role in a project."""

    username = Text(required=True)
    project_role = Choice("admin", "manager", "user", required=True)


class Members(Body):
    """Users with their roles."""

    members = Items(Part(MemberSetting), required=True)


class MemberNames(Body):
    """Some members."""

    usernames = Items(Text(), required=True)


# Fleets ----------------------------------------------------------------------------------------


class ListProjectFleets(OptionalBody):
    """The fleets of a project."""

    include_imported = Flag(load_default=False)


class ListFleets(Cursor):
    """A page of fleets."""

    project_name = optional(Text)
    only_active = Flag(load_default=False)
    include_imported = Flag(load_default=False)
    limit = Whole(0, 100, load_default=100)


class GetFleet(Body):
    """A fleet by name or id."""

    name = optional(Text)
    id = optional(Uuid)


class GetFleetPlan(Body):
    """A fleet to be planned."""

    spec = Part(FleetSpec, required=True)


class SameFleet(Schema):
    """A fleet as the client saw it: what says whether it is still the same."""

    class Meta:
        unknown = EXCLUDE

    id = Uuid(required=True)
    spec = Part(FleetSpec, required=True)


class FleetPlanInput(Body):
    """A plan to be applied."""

    spec = Part(FleetSpec, required=True)
    current_resource = optional(Part, SameFleet)


class ApplyFleetPlan(Body):
    """A plan to be applied; `force` also when the fleet has changed since."""

    plan = Part(FleetPlanInput, required=True)
    force = Flag(required=True)


class FleetNames(Body):
    """Some fleets."""

    names = Items(Text(), required=True)


class InstanceNumbers(Body):
    """Some instances of a fleet."""

    name = Text(required=True)
    instance_nums = Items(Whole(), required=True)


class ListInstances(Cursor):
    """A page of instances."""

    project_names = optional(Items, Text())
    fleet_ids = optional(Items, Uuid())
    only_active = Flag(load_default=False)
    include_imported = Flag(load_default=False)
    limit = Whole(0, 1000, load_default=1000)


class InstanceId(Body):
    """One instance."""

    id = Uuid(required=True)


class HealthQuery(Body):
    """Some of an instance's health checks."""

    fleet_name = Text(required=True)
    instance_num = Whole(required=True)
    after = optional(Moment)
    before = optional(Moment)
    limit = optional(Whole, 0)


# Runs ------------------------------------------------------------------------------------------


class ListRuns(OptionalBody):
    """A page of runs."""

    project_name = optional(Text)
    repo_id = optional(Text)
    username = optional(Text)
    only_active = Flag(load_default=False)
    include_jobs = Flag(load_default=True)
    job_submissions_limit = optional(Whole, 0, 10)
    prev_submitted_at = optional(Moment)
    prev_run_id = optional(Uuid)
    limit = Whole(0, 100, load_default=100)
    ascending = Flag(load_default=False)


class GetRun(Body):
    """A run by name or id."""

    run_name = optional(Text)
    id = optional(Uuid)


class GetRunPlan(Body):
    """A run to be planned."""

    run_spec = Part(RunSpec, required=True)
    max_offers = optional(Whole, 1, 10_000)
    reverse_offers = Flag(load_default=False)
    full_offers = Flag(load_default=False)
    unallocated_resources = Flag(load_default=False)
    for_offers_only = Flag(load_default=False)


class SameRun(Schema):
    """A run as the client saw it: what says whether it is still the same."""

    class Meta:
        unknown = EXCLUDE

    id = Uuid(required=True)
    run_spec = Part(RunSpec, required=True)


class RunPlanInput(Body):
    """A plan to be applied."""

    run_spec = Part(RunSpec, required=True)
    current_resource = optional(Part, SameRun)


class ApplyRunPlan(Body):
    """A plan to be applied; `force` also when the run has changed since."""

    plan = Part(RunPlanInput, required=True)
    force = Flag(required=True)


class StopRuns(Body):
    """Runs to stop; `abort` without grace."""

    runs_names = Items(Text(), required=True)
    abort = Flag(required=True)


class RunNames(Body):
    """Some runs."""

    runs_names = Items(Text(), required=True)


class ListGpus(Body):
    """What GPUs the offers of a run have."""

    run_spec = Part(RunSpec, required=True)
    group_by = optional(Items, Choice("backend", "region", "count"))
    reverse = Flag(load_default=False)
    full_offers = Flag(load_default=False)
    unallocated_resources = Flag(load_default=False)


class RepoCreds(Body):
    """How a repository is cloned."""

    clone_url = Text(required=True)
    private_key = optional(Text)
    oauth_token = optional(Text)


class InitRepo(Body):
    """Where code comes from."""

    repo_id = Text(required=True)
    repo_info = Part(AnyRepo, required=True)
    repo_creds = optional(Part, RepoCreds)


class PollLogs(Body):
    """A part of a job's output; both times are exclusive."""

    run_name = Text(required=True)
    job_submission_id = Uuid(required=True)
    start_time = optional(Moment)
    end_time = optional(Moment)
    descending = Flag(load_default=False)
    next_token = optional(Text)
    limit = Whole(0, 1000, load_default=100)
    diagnose = Flag(load_default=False)


_TARGETS = (
    "project", "user", "fleet", "instance", "run", "job", "volume", "gateway", "gateway-replica", "secret",
    "preset",
)  # fmt: skip
_IDS = validate.Length(1, 16, error="Value error, must have 1 to 16 ids")


def ids() -> fields.Field[Any]:
    """A few ids."""
    return optional(Items, Uuid(), validate=_IDS)


class ListEvents(OptionalBody):
    """A page of events, of some targets or within some things."""

    target_projects = ids()
    target_users = ids()
    target_fleets = ids()
    target_instances = ids()
    target_runs = ids()
    target_jobs = ids()
    target_volumes = ids()
    target_gateways = ids()
    target_gateway_replicas = ids()
    target_secrets = ids()
    target_presets = ids()
    within_projects = ids()
    within_fleets = ids()
    within_runs = ids()
    within_gateways = ids()
    include_target_types = optional(Items, Choice(*_TARGETS))
    actors = optional(Items, Uuid(allow_none=True))
    prev_recorded_at = optional(Moment)
    prev_id = optional(Uuid)
    limit = Whole(1, 100, load_default=100)
    ascending = Flag(load_default=False)

    @validates_schema
    def _one_filter(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        for prefix in ("target_", "within_"):
            given = [name for name in data if name.startswith(prefix) and data[name]]
            if len(given) > 1:
                raise bad(f"at most one {prefix}* filter can be given, not {' and '.join(given)}")
