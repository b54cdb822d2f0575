"""What the calls of the runs interface answer, for its document (runs.md section 5); description.py makes it.

Each field is always there; clients ignore those that they do not know.  Specs come in the long form of what runs/specs.py takes.
"""

from __future__ import annotations

from typing import Any

from marshmallow import Schema, fields

from runs.fields import Choice, Flag, Moment, Table, Text, Uuid, Whole
from runs.lifecycle import MOVES, Kind
from runs.resources import Resources
from runs.sizes import BACKEND, REGION
from runs.specs import FleetSpec, RunSpec


def always(kind: type[fields.Field[Any]], *args: Any, **kwargs: Any) -> fields.Field[Any]:
    """A field that has a value."""
    return kind(*args, required=True, **kwargs)


def maybe(kind: type[fields.Field[Any]], *args: Any, **kwargs: Any) -> fields.Field[Any]:
    """A field that may be null."""
    return always(kind, *args, allow_none=True, **kwargs)


def part(schema: type[Schema], **kwargs: Any) -> fields.Field[Any]:
    """An object."""
    return always(fields.Nested, schema, **kwargs)


def parts(schema: type[Schema]) -> fields.Field[Any]:
    """Some objects."""
    return part(schema, many=True)


def words(**kwargs: Any) -> fields.Field[Any]:
    """Some texts."""
    return always(fields.List, Text(), **kwargs)


def nothing() -> fields.Field[Any]:
    """What there is none of here."""
    return always(fields.Raw, metadata={"type": "null"})


def none_of() -> fields.Field[Any]:
    """A list that is empty here."""
    return always(fields.List, fields.Raw(), metadata={"maxItems": 0})


def state(kind: Kind) -> fields.Field[Any]:
    """A state of a run, job, instance or fleet."""
    table = MOVES[kind]
    return always(Choice, *sorted({*table, *(end for ends in table.values() for end in ends)}))


NOTHING = {"type": "null"}
EMPTY = {"type": "array", "items": {}, "maxItems": 0}


class Refusal(Schema):
    """Every refusal: a sentence, or one object or a list of them with what was wrong."""

    detail = always(
        fields.Raw,
        metadata={
            "anyOf": [
                {"type": "string"},
                {"type": "object", "required": ["msg", "code"]},
                {"type": "array", "items": {"type": "object", "required": ["msg"]}},
            ]
        },
    )


class ServerInfo(Schema):
    """The level of the interface."""

    server_version = always(Text)


class Health(Schema):
    """That the service answers."""

    status = always(Choice, "running")


# Users and projects ----------------------------------------------------------------------------


class UserPermissions(Schema):
    """What a user may do on this host."""

    can_create_projects = always(Flag)


class User(Schema):
    """A user."""

    id = always(Uuid)
    username = always(Text)
    created_at = always(Moment)
    global_role = always(Choice, "admin", "user")
    email = maybe(Text)
    active = always(Flag)
    permissions = part(UserPermissions)
    ssh_public_key = maybe(Text)


class Creds(Schema):
    """A user's token; empty where it is not told."""

    token = always(Text)


class UserWithCreds(User):
    """A user with token and key pair."""

    creds = part(Creds)
    ssh_private_key = maybe(Text)


class UsersPage(Schema):
    """Users, and how many there are in all."""

    total_count = always(Whole)
    users = parts(User)


class PublicKey(Schema):
    """A public key that a user added."""

    id = always(Uuid)
    added_at = always(Moment)
    name = always(Text)
    type = always(Text)
    fingerprint = always(Text)


class MemberPermissions(Schema):
    """What a member may do in a project."""

    can_manage_ssh_fleets = always(Flag)
    can_manage_secrets = always(Flag)


class Member(Schema):
    """A user in a project."""

    user = part(User)
    project_role = always(Choice, "admin", "manager", "user")
    permissions = part(MemberPermissions)


class Project(Schema):
    """A project."""

    project_id = always(Uuid)
    project_name = always(Text)
    owner = part(User)
    created_at = always(Moment)
    backends = none_of()
    members = parts(Member)
    is_public = always(Flag)
    templates_repo = nothing()


class ProjectsPage(Schema):
    """Projects, and how many there are in all."""

    total_count = always(Whole)
    projects = parts(Project)


# Sizes, fleets and instances -------------------------------------------------------------------


class DiskSize(Schema):
    """How much disk there is."""

    size_mib = always(Whole)


class Machine(Schema):
    """What a VM has."""

    cpus = always(Whole)
    memory_mib = always(Whole)
    gpus = none_of()
    spot = always(Flag)
    disk = part(DiskSize)
    cpu_arch = always(Choice, "x86")
    description = always(Text)


class InstanceType(Schema):
    """A size of VM."""

    name = always(Text)
    resources = part(Machine)


class Offer(Schema):
    """A size of VM, or an instance, that a job could have."""

    backend = always(Choice, BACKEND)
    instance = part(InstanceType)
    region = always(Choice, REGION)
    price = always(fields.Float)
    backend_data = always(fields.Dict)
    availability = always(Choice, "available", "idle", "busy")
    availability_zones = nothing()
    instance_runtime = always(Choice, "shim")
    blocks = always(Whole)
    total_blocks = always(Whole)


class Instance(Schema):
    """A VM of a fleet."""

    id = always(Uuid)
    project_name = always(Text)
    backend = always(Choice, BACKEND)
    instance_type = part(InstanceType)
    name = always(Text)
    fleet_id = always(Uuid)
    fleet_name = always(Text)
    instance_num = always(Whole)
    job_name = nothing()
    hostname = maybe(Text)
    status = state(Kind.INSTANCE)
    unreachable = always(Flag)
    health_status = always(Choice, "healthy")
    termination_reason = maybe(Text)
    termination_reason_message = maybe(Text)
    created = always(Moment)
    finished_at = maybe(Moment)
    region = always(Choice, REGION)
    availability_zone = nothing()
    price = always(fields.Float)
    total_blocks = always(Whole)
    busy_blocks = always(Whole)
    gpu_driver = nothing()
    vm_id = maybe(Text)


class HealthChecks(Schema):
    """The health checks of an instance, of which there are none here."""

    health_checks = none_of()


class Fleet(Schema):
    """A fleet with the instances that are not gone."""

    id = always(Uuid)
    name = always(Text)
    project_name = always(Text)
    spec = part(FleetSpec)
    created_at = always(Moment)
    status = state(Kind.FLEET)
    status_message = maybe(Text)
    instances = parts(Instance)


class FleetPlan(Schema):
    """What applying a fleet would do."""

    project_name = always(Text)
    user = always(Text)
    spec = part(FleetSpec)
    effective_spec = part(FleetSpec)
    current_resource = part(Fleet, allow_none=True)
    offers = parts(Offer)
    total_offers = always(Whole)
    max_offer_price = maybe(fields.Float)
    action = always(Choice, "create", "update")


# Runs ------------------------------------------------------------------------------------------


class AppSpec(Schema):
    """A port that attached clients forward."""

    port = always(Whole)
    map_to_port = maybe(Whole)
    app_name = always(Text)
    url_path = nothing()
    url_query_params = nothing()


class UnixUser(Schema):
    """Who a job runs as."""

    uid = maybe(Whole)
    gid = maybe(Whole)
    username = maybe(Text)
    groupname = maybe(Text)


class Requirements(Schema):
    """What a job needs."""

    resources = part(Resources)
    max_price = maybe(fields.Float)
    spot = maybe(Flag)
    reservation = maybe(Text)
    multinode = always(Flag)
    backend_options = maybe(fields.List, fields.Raw())


class RetryPolicy(Schema):
    """What a job is submitted again for, and for how many seconds."""

    on_events = words()
    duration = always(Whole)


class JobSpec(Schema):
    """A job as it is executed."""

    replica_num = always(Whole)
    job_num = always(Whole)
    job_name = always(Text)
    jobs_per_replica = always(Whole)
    replica_group = always(Text)
    app_specs = parts(AppSpec)
    user = part(UnixUser, allow_none=True)
    commands = words()
    env = always(Table)
    home_dir = always(Text)
    image_name = always(Text)
    privileged = always(Flag)
    single_branch = always(Flag)
    max_duration = maybe(Whole)
    stop_duration = maybe(Whole)
    utilization_policy = maybe(fields.Dict)
    registry_auth = maybe(Table)
    requirements = part(Requirements)
    retry = part(RetryPolicy, allow_none=True)
    volumes = none_of()
    ssh_key = nothing()
    working_dir = maybe(Text)
    repo_data = always(Table)
    repo_code_hash = maybe(Text)
    repo_dir = always(Text)
    repo_exists_action = nothing()
    file_archives = none_of()
    service_port = maybe(Whole)
    probes = always(fields.List, fields.Dict())
    node_group_index = always(Whole)
    node_group_name = always(Text)
    node_group_job_index = always(Whole)


class Provisioning(Schema):
    """The VM that a job is on."""

    backend = always(Choice, BACKEND)
    base_backend = nothing()
    instance_type = part(InstanceType)
    instance_id = always(Text)
    hostname = maybe(Text)
    internal_ip = maybe(Text)
    public_ip_enabled = always(Flag)
    instance_network = nothing()
    region = always(Choice, REGION)
    availability_zone = nothing()
    reservation = nothing()
    price = always(fields.Float)
    username = always(Text)
    ssh_port = maybe(Whole)
    dockerized = always(Flag)
    ssh_proxy = nothing()
    backend_data = nothing()
    gpu_driver = nothing()


class Runtime(Schema):
    """How a job runs on its VM."""

    network_mode = always(Choice, "host")
    gpu = nothing()
    cpu = nothing()
    memory = nothing()
    ports = always(fields.Dict)
    volume_names = none_of()
    offer = part(Offer)
    working_dir = maybe(Text)
    username = maybe(Text)


class ProbeState(Schema):
    """How often in a row a probe of a service has succeeded."""

    success_streak = always(Whole)


class JobSubmission(Schema):
    """One try of a job."""

    id = always(Uuid)
    submission_num = always(Whole)
    deployment_num = always(Whole)
    submitted_at = always(Moment)
    last_processed_at = always(Moment)
    finished_at = maybe(Moment)
    inactivity_secs = maybe(Whole)
    status = state(Kind.JOB)
    status_message = always(Text)
    termination_reason = maybe(Text)
    termination_reason_message = maybe(Text)
    exit_status = maybe(Whole)
    job_provisioning_data = part(Provisioning, allow_none=True)
    job_runtime_data = part(Runtime, allow_none=True)
    error = maybe(Text)
    probes = parts(ProbeState)
    image_pull_progress = nothing()


class Connection(Schema):
    """How attached clients reach a job that runs."""

    ide_name = maybe(Text)
    attached_ide_url = maybe(Text)
    proxied_ide_url = nothing()
    attached_ssh_command = words()
    proxied_ssh_command = nothing()
    sshproxy_hostname = nothing()
    sshproxy_port = nothing()
    sshproxy_upstream_id = nothing()


class Job(Schema):
    """A job of a run with its tries."""

    job_spec = part(JobSpec)
    job_submissions = parts(JobSubmission)
    job_connection_info = part(Connection, allow_none=True)


class RunFleet(Schema):
    """The fleet that a run uses."""

    id = always(Uuid)
    name = always(Text)


class ServicePlace(Schema):
    """Where a service is reached, below the address of this server."""

    url = always(Text)
    model = nothing()
    options = always(fields.Dict)


class Run(Schema):
    """A run."""

    id = always(Uuid)
    project_name = always(Text)
    user = always(Text)
    fleet = part(RunFleet, allow_none=True)
    submitted_at = always(Moment)
    last_processed_at = always(Moment)
    status = state(Kind.RUN)
    status_message = always(Text)
    termination_reason = maybe(Text)
    run_spec = part(RunSpec)
    jobs = parts(Job)
    latest_job_submission = part(JobSubmission, allow_none=True)
    cost = always(fields.Float)
    service = part(ServicePlace, allow_none=True)
    deployment_num = always(Whole)
    error = maybe(Text)
    deleted = always(Flag)
    next_triggered_at = nothing()


class JobPlan(Schema):
    """A job with the offers for it: those shown, and how many there are."""

    job_spec = part(JobSpec)
    offers = parts(Offer)
    total_offers = always(Whole)
    max_price = maybe(fields.Float)


class RunPlan(Schema):
    """What applying a run would do."""

    project_name = always(Text)
    user = always(Text)
    run_spec = part(RunSpec)
    effective_run_spec = part(RunSpec)
    job_plans = parts(JobPlan)
    current_resource = part(Run, allow_none=True)
    action = always(Choice, "create", "update")


class Gpus(Schema):
    """The GPUs of offers: there are none here."""

    gpus = none_of()
    cpus = nothing()


class Metrics(Schema):
    """The measurements of a job: none are taken."""

    metrics = none_of()


class Models(Schema):
    """The models that services offer: none do here."""

    object = always(Choice, "list")
    data = none_of()


# Logs and events -------------------------------------------------------------------------------


class LogEvent(Schema):
    """One chunk of output; `message` is Base64."""

    timestamp = always(Moment)
    log_source = always(Choice, "stdout")
    message = always(Text)


class Logs(Schema):
    """A page of output; `next_token` is null when there is no more now."""

    logs = parts(LogEvent)
    external_url = nothing()
    next_token = maybe(Text)


class EventTarget(Schema):
    """What an event is about."""

    type = always(Text)
    project_id = maybe(Uuid)
    project_name = maybe(Text)
    is_project_deleted = maybe(Flag)
    id = always(Uuid)
    name = always(Text)


class Event(Schema):
    """Something that happened."""

    id = always(Uuid)
    message = always(Text)
    recorded_at = always(Moment)
    actor_user_id = maybe(Uuid)
    actor_user = maybe(Text)
    is_actor_user_deleted = maybe(Flag)
    targets = parts(EventTarget)
