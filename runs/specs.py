"""Configurations of runs and fleets as users write them, loaded into the one canonical form that is stored and answered.

Source: runs.md section 5 and the models of the published API (names, defaults and limits of each field).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any

from marshmallow import (
    RAISE,
    Schema,
    ValidationError,
    fields,
    post_load,
    pre_load,
    validate,
    validates_schema,
)

from runs.fields import (
    Amount,
    Choice,
    Duration,
    Environment,
    Flag,
    Items,
    Memory,
    OffDuration,
    Part,
    Short,
    Span,
    Table,
    Text,
    Uuid,
    Whole,
    architecture,
    bad,
    count,
    expand_cpu,
    expand_disk,
    expand_gpu,
    expand_nodes,
    expand_port,
    expand_reference,
    gigabytes,
    refusals,
)

# What the client takes for a backend; every offer of ours is `remote`.
BACKENDS = (
    "amddevcloud", "aws", "azure", "cloudrift", "crusoe", "cudo", "datacrunch", "daytona", "digitalocean",
    "dstack", "gcp", "hotaisle", "jarvislabs", "kubernetes", "lambda", "lium", "local", "nebius", "oci",
    "remote", "runpod", "seeweb", "slurm", "tensordock", "vastai", "verda", "vultr",
)  # fmt: skip
# Ports of the machinery inside a VM (runs.md section 7).
RESERVED_PORTS = range(10_000, 11_000)
MAX_REPLICAS = 100
MAX_NODES = 100


BODY_MESSAGES: dict[str, str] = {
    "unknown": "Extra inputs are not permitted",
    "type": "Input should be a valid dictionary",
}


class Body(Schema):
    """An object in which every field must be known."""

    class Meta:
        unknown = RAISE

    error_messages = BODY_MESSAGES


def optional(kind: type[fields.Field[Any]], *args: Any, **kwargs: Any) -> fields.Field[Any]:
    """A field that may be absent or null."""
    return kind(*args, allow_none=True, load_default=None, **kwargs)


def several(kind: fields.Field[Any] | type[fields.Field[Any]], **kwargs: Any) -> fields.Field[Any]:
    """A list that may be absent (then empty)."""
    return Items(kind, load_default=list, **kwargs)


def default_of(schema: type[Schema], given: Mapping[str, Any] | None = None) -> Callable[[], Any]:
    """What an absent object is: the schema's own defaults."""
    known = schema()
    return lambda: known.load(dict(given or {}))


# Resources -------------------------------------------------------------------------------------


class Cpu(Body):
    """How many cores, and of which architecture."""

    arch = optional(Choice, "x86", "arm")
    count = Span(of=count, load_default=lambda: {"min": 2, "max": None})

    @pre_load
    def _accept(self, data: Mapping[str, Any], **kwargs: Any) -> Mapping[str, Any]:
        if data and set(data) <= {"min", "max"}:  # a plain range
            return {"count": data}
        return {**data, "arch": architecture(data["arch"])} if "arch" in data else data


class Gpu(Body):
    """Which GPUs, and how many."""

    vendor = optional(Choice, "nvidia", "amd", "google", "intel", "tenstorrent")
    name = optional(Items, Text())
    count = Span(of=count, load_default=lambda: {"min": 1, "max": None})
    memory = optional(Span, of=gigabytes)
    total_memory = optional(Span, of=gigabytes)
    compute_capability = optional(Items, Whole(0, 1000))

    @pre_load
    def _accept(self, data: Mapping[str, Any], **kwargs: Any) -> Mapping[str, Any]:
        found = dict(data)
        if isinstance(found.get("name"), str):
            found["name"] = [found["name"]]
        if isinstance(found.get("vendor"), str):
            found["vendor"] = {"tpu": "google", "tt": "tenstorrent"}.get(
                found["vendor"].lower(), found["vendor"].lower()
            )
        if isinstance(found.get("compute_capability"), int | float | str):
            found["compute_capability"] = str(found["compute_capability"]).strip().split(".")
        return found


class Disk(Body):
    """How much disk."""

    size = Span(of=gigabytes, required=True)


class Resources(Body):
    """What a machine must have."""

    cpu = Short(Cpu, expand_cpu, kinds=("integer", "string"), load_default=default_of(Cpu))
    memory = Span(of=gigabytes, load_default=lambda: {"min": 8.0, "max": None})
    shm_size = optional(Memory)
    gpu = Short(
        Gpu,
        expand_gpu,
        kinds=("integer", "string"),
        allow_none=True,
        load_default=default_of(Gpu, {"count": {"min": 0, "max": None}}),
    )
    disk = Short(
        Disk,
        expand_disk,
        kinds=("integer", "string"),
        allow_none=True,
        load_default=default_of(Disk, {"size": {"min": 100.0, "max": None}}),
    )


# Profiles --------------------------------------------------------------------------------------


class Reference(Body):
    """A thing of this project or of another one."""

    project = optional(Text)
    name = Text(required=True)


class Retry(Body):
    """What a run is submitted again for, and for how long."""

    on_events = optional(
        Items,
        Choice("no-capacity", "interruption", "error"),
        validate=validate.Length(1, error="Value error, `on_events` cannot be empty"),
    )
    duration = optional(Duration)


class RetryRule(Part):
    """A retry policy, or true or false."""

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> Any:
        return value if isinstance(value, bool) else super()._deserialize(value, *args, **kwargs)


class Utilization(Body):
    """When a run is ended for using its GPUs too little."""

    min_gpu_utilization = Whole(0, 100, required=True)
    time_window = Duration(required=True)


class Schedule(Body):
    """When a run is started."""

    cron = fields.Raw(required=True)


class InstanceSelector(Body):
    """One instance, by its own name, its host's or its number in a fleet."""

    name = Text(validate=validate.Length(1))
    hostname = Text(validate=validate.Length(1))
    fleet = Short(Reference, expand_reference, kinds=("string",))
    instance = Whole(0)


class Profile(Body):
    """How a run or fleet is placed and kept: the fields that a configuration may have too."""

    backends = optional(Items, Choice(*BACKENDS))
    regions = optional(Items, Text())
    availability_zones = optional(Items, Text())
    instance_types = optional(Items, Text())
    reservation = optional(Text)
    spot_policy = optional(Choice, "spot", "on-demand", "auto")
    retry = optional(RetryRule, Retry)
    max_duration = OffDuration()
    stop_duration = OffDuration()
    max_price = optional(
        Amount,
        validate=validate.Range(0, min_inclusive=False, error="Input should be greater than 0"),
    )
    creation_policy = optional(Choice, "reuse", "reuse-or-create")
    idle_duration = OffDuration(off=-1)
    utilization_policy = optional(Part, Utilization)
    startup_order = optional(Choice, "any", "master-first", "workers-first")
    stop_criteria = optional(Choice, "all-done", "master-done")
    schedule = optional(Part, Schedule)
    fleets = optional(Items, Short(Reference, expand_reference, kinds=("string",)))
    instances = optional(
        Items, Short(InstanceSelector, lambda name: {"name": name}, kinds=("string",))
    )
    tags = optional(Table)
    backend_options = optional(Items, fields.Raw())


class NamedProfile(Profile):
    """A profile beside a configuration."""

    name = Text(load_default="")
    default = Flag(load_default=False)


# Runs ------------------------------------------------------------------------------------------


class Port(Body):
    """A port of the job, and where it is on the user's machine (null: anywhere)."""

    local_port = optional(Whole, 1, 65535)
    container_port = Whole(1, 65535, required=True)


class RegistryAuth(Body):
    """Who pulls the image."""

    username = Text(required=True)
    password = Text(required=True)


def ports_field() -> fields.Field[Any]:
    """A list of ports."""
    return several(Short(Port, expand_port, kinds=("integer", "string")))


class RunConfiguration(Profile):
    """What tasks, services and dev environments have in common."""

    name = optional(Text)
    image = optional(Text)
    user = optional(Text)
    privileged = Flag(load_default=False)
    entrypoint = optional(Text)
    working_dir = optional(Text)
    home_dir = Text(load_default="/root")
    registry_auth = optional(Part, RegistryAuth)
    python = optional(Choice, "3.9", "3.10", "3.11", "3.12", "3.13", "3.14", "3.15")
    nvcc = optional(Flag)
    single_branch = optional(Flag)
    env = Environment(load_default=dict)
    shell = optional(Text)
    resources = Part(Resources, load_default=default_of(Resources))
    priority = optional(Whole, 0, 100)
    volumes = several(fields.Raw())
    docker = optional(Flag)
    repos = several(fields.Raw())
    files = several(fields.Raw())
    dstack = Flag(load_default=False)
    setup = several(Text)

    @pre_load
    def _accept(self, data: Mapping[str, Any], **kwargs: Any) -> Mapping[str, Any]:
        version = data.get("python")
        if isinstance(version, float):  # YAML's 3.10 is 3.1
            return {**data, "python": "3.10" if version == 3.1 else str(version)}
        return data

    @validates_schema
    def _check(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        if data["image"] and data["python"]:
            raise ValidationError(
                {"python": ["Value error, `image` and `python` exclude each other"]}
            )
        if data["image"] and data["docker"]:
            raise ValidationError(
                {"docker": ["Value error, `image` and `docker` exclude each other"]}
            )
        shell = data["shell"]
        if shell is not None and shell not in ("sh", "bash") and not shell.startswith("/"):
            raise ValidationError(
                {"shell": ["Value error, must be `sh`, `bash` or an absolute path"]}
            )


def _must_do_something(data: Mapping[str, Any]) -> None:
    if not data["commands"] and not data["image"]:
        raise bad("Either `commands` or `image` must be set")


class Task(RunConfiguration):
    """Commands that end."""

    type = Choice("task", load_default="task")
    nodes = optional(Whole, 1, MAX_NODES)
    groups = optional(Items, fields.Raw())
    ports = ports_field()
    commands = several(Text)

    @validates_schema
    def _check_commands(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        _must_do_something(data)

    @post_load
    def _fill(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {**data, "nodes": data["nodes"] or 1}


class Probe(Body):
    """How a service is asked whether it works."""

    type = Choice("http", required=True)
    url = optional(Text, validate=validate.Length(1, 2048))
    method = optional(Choice, "get", "post", "put", "delete", "patch", "head")
    headers = several(fields.Raw())
    body = optional(Text)
    timeout = optional(Duration)
    interval = optional(Duration)
    ready_after = optional(Whole, 1)
    until_ready = optional(Flag)


class Scaling(Body):
    """How the number of replicas follows the requests."""

    metric = Choice("rps", required=True)
    target = Amount(required=True)
    window = optional(Duration)
    scale_up_delay = Duration(load_default=300)
    scale_down_delay = Duration(load_default=600)


class Service(RunConfiguration):
    """Commands that serve requests until they are stopped."""

    type = Choice("service", load_default="service")
    port = Short(
        Port,
        lambda value: (
            {"local_port": 80, "container_port": value}
            if not isinstance(value, str) or value.isdigit()
            else expand_port(value)
        ),
        kinds=("integer", "string"),
        required=True,
    )
    gateway = optional(fields.Raw)
    strip_prefix = Flag(load_default=True)
    model = optional(fields.Raw)
    https = optional(fields.Raw)
    auth = Flag(load_default=True)
    scaling = optional(Part, Scaling)
    rate_limits = several(fields.Raw())
    probes = optional(Items, Part(Probe))
    replicas = optional(Span, of=count)
    groups = optional(Items, fields.Raw())
    commands = several(Text)

    @validates_schema
    def _check_service(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        _must_do_something(data)
        replicas = data["replicas"] or {"min": 1, "max": 1}
        if replicas["max"] is None or (replicas["min"] or 0) > MAX_REPLICAS:
            raise ValidationError(
                {"replicas": ["Value error, the maximum number must be specified"]}
            )
        if replicas["min"] != replicas["max"] and data["scaling"] is None:
            raise bad("When you set `replicas` to a range, ensure to specify `scaling`.")


class DevEnvironment(RunConfiguration):
    """A machine to work on over SSH."""

    type = Choice("dev-environment", load_default="dev-environment")
    ide = optional(Choice, "vscode", "cursor", "windsurf", "zed")
    version = optional(Text)
    init = several(Text)
    inactivity_duration = OffDuration(off=None)
    ports = ports_field()

    @validates_schema
    def _check_entrypoint(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        if data["entrypoint"] is not None:
            raise ValidationError(
                {"entrypoint": ["Value error, entrypoint is not supported for dev-environment"]}
            )


KINDS: dict[str, RunConfiguration] = {
    "dev-environment": DevEnvironment(),
    "task": Task(),
    "service": Service(),
}


class AnyConfiguration(fields.Field[dict[str, Any]]):
    """A run's configuration, which says by `type` what it is."""

    default_error_messages = refusals(
        "dictionary",
        no_tag="Unable to extract tag using discriminator 'type'",
        tag="Input tag '{tag}' found using 'type' does not match any of the expected tags: {tags}",
    )

    def _deserialize(self, value: Any, *args: Any, **kwargs: Any) -> dict[str, Any]:
        if not isinstance(value, Mapping):
            raise self.make_error("invalid")
        tag = value.get("type")
        if tag is None:
            raise self.make_error("no_tag")
        if not isinstance(tag, str) or tag not in KINDS:
            tags = ", ".join(f"'{kind}'" for kind in KINDS)
            raise self.make_error("tag", tag=str(tag)[:40], tags=tags)
        try:
            return dict(KINDS[tag].load(value))
        except ValidationError as error:
            # The place of a fault names the kind, as the clients know it.
            raise ValidationError({tag: error.messages}) from None


class AnyRepo(Body):
    """Where code comes from; only `virtual` (nowhere) is taken."""

    repo_type = Choice("remote", "local", "virtual", required=True)
    repo_name = optional(Text)
    repo_dir = optional(Text)
    repo_branch = optional(Text)
    repo_hash = optional(Text)
    repo_diff = optional(Text)
    repo_config_name = optional(Text)
    repo_config_email = optional(Text)

    @post_load
    def _drop_unset(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        return {name: value for name, value in data.items() if value is not None}


class RunSpec(Body):
    """A run as it is submitted."""

    run_name = optional(Text)
    repo_id = optional(Text)
    repo_data = optional(Part, AnyRepo)
    repo_code_hash = optional(Text)
    repo_dir = optional(Text)
    file_archives = several(fields.Raw())
    working_dir = optional(Text)
    configuration_path = optional(Text)
    configuration = AnyConfiguration(required=True)
    profile = optional(Part, NamedProfile)
    ssh_key_pub = optional(Text)


# Fleets ----------------------------------------------------------------------------------------


class Nodes(Body):
    """How many instances a fleet has: at least, at first, at most (null: any number)."""

    min = Whole(0, 10_000, load_default=0)
    target = optional(Whole, 0, 10_000)
    max = optional(Whole, 0, 10_000)

    @post_load
    def _fill(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        least, target, most = data["min"], data["target"], data["max"]
        target = least if target is None else target
        if target < least or (most is not None and target > most):
            raise bad("`target` must be between `min` and `max`")
        if most is not None and most < least or most == 0:
            raise bad("`max` must be at least 1 and not less than `min`")
        # Told only where it says something.
        return {"min": least, **({} if target == least else {"target": target}), "max": most}


class FleetConfiguration(Body):
    """A pool of instances, and the template of those that come."""

    type = Choice("fleet", load_default="fleet")
    name = optional(Text)
    placement = optional(Choice, "any", "cluster")
    blocks = fields.Raw(load_default=1)
    nodes = Short(
        Nodes, expand_nodes, kinds=("integer", "string"), allow_none=True, load_default=None
    )
    reservation = optional(Text)
    resources = Part(Resources, allow_none=True, load_default=default_of(Resources))
    backends = optional(Items, Choice(*BACKENDS))
    regions = optional(Items, Text())
    availability_zones = optional(Items, Text())
    instance_types = optional(Items, Text())
    spot_policy = optional(Choice, "spot", "on-demand", "auto")
    retry = optional(RetryRule, Retry)
    max_price = optional(
        Amount,
        validate=validate.Range(0, min_inclusive=False, error="Input should be greater than 0"),
    )
    idle_duration = OffDuration(off=-1)
    tags = optional(Table)
    backend_options = optional(Items, fields.Raw())
    ssh_config = optional(fields.Raw)
    env = Environment(load_default=dict)


class FleetSpec(Body):
    """A fleet as it is applied."""

    configuration = Part(FleetConfiguration, required=True)
    configuration_path = optional(Text)
    profile = Part(NamedProfile, required=True)
    autocreated = Flag(load_default=False)


class RunReference(Schema):
    """A run as a client gives it back: only what says whether it is still the same is read."""

    id = Uuid(required=True)
    run_spec = fields.Raw(load_default=None)


_NAME = re.compile(r"[a-z][a-z0-9-]{1,40}")


def is_name(text: str) -> bool:
    """Whether a text may name a run or a fleet."""
    return _NAME.fullmatch(text) is not None


NAME_RULE = "Resource name should match regex '^[a-z][a-z0-9-]{1,40}$'"
