"""What a run does: tasks, services and dev environments, as users write them.

Source: runs.md section 5 and the models of the published API (names, defaults and limits of each field).
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from marshmallow import (
    ValidationError,
    fields,
    post_load,
    pre_load,
    validate,
    validates_schema,
)

from runs.bodies import Body, default_of, optional, several
from runs.fields import (
    Amount,
    Choice,
    Duration,
    Environment,
    Flag,
    Items,
    OffDuration,
    Part,
    Short,
    Span,
    Text,
    Whole,
    bad,
    count,
    expand_port,
    refusals,
)
from runs.profiles import Profile
from runs.resources import Resources

# Ports of the machinery inside a VM (runs.md section 7).
RESERVED_PORTS = range(10_000, 11_000)
MAX_REPLICAS = 100
MAX_NODES = 100
MAX_PORTS = 100
MAX_PROBES = 10
MAX_PROBE_HEADERS = 16
MAX_PROBE_TIMEOUT_S = 300
_USER = re.compile(r"[^\s:]+(:[^\s:]+)?")


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
    return several(Short(Port, expand_port, kinds=("integer", "string")), most=MAX_PORTS)


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
        if data["user"] is not None and not _USER.fullmatch(data["user"]):
            raise ValidationError({"user": ["Value error, must be USER or USER:GROUP"]})
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


class ProbeHeader(Body):
    """A header of a probe's request."""

    name = Text(required=True, validate=validate.Length(1, 256))
    value = Text(required=True, validate=validate.Length(1, 2048))


def _seconds(most: int | None = None) -> fields.Field[Any]:
    rule = "Value error, must be at least 1s" + (f" and at most {most}s" if most else "")
    return optional(Duration, validate=validate.Range(1, most, error=rule))


class Probe(Body):
    """How a service is asked whether it works."""

    type = Choice("http", required=True)
    url = optional(Text, validate=validate.Length(1, 2048))
    method = optional(Choice, "get", "post", "put", "delete", "patch", "head")
    headers = several(Part(ProbeHeader), most=MAX_PROBE_HEADERS)
    body = optional(Text, validate=validate.Length(1, 2048))
    timeout = _seconds(MAX_PROBE_TIMEOUT_S)
    interval = _seconds()
    ready_after = optional(Whole, 1)
    until_ready = optional(Flag)

    @validates_schema
    def _check_request(self, data: Mapping[str, Any], **kwargs: Any) -> None:
        url = data["url"]
        if url is not None and not (url.startswith("/") and url.isprintable() and " " not in url):
            raise ValidationError(
                {"url": ["Value error, must be a path that starts with `/`, without spaces"]}
            )
        if data["body"] is not None and data["method"] in (None, "get", "head"):
            raise ValidationError(
                {"body": ["Value error, needs a `method` that has one, such as `post`"]}
            )


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
    probes = optional(Items, Part(Probe), most=MAX_PROBES)
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

    kinds, shapes = (), tuple(KINDS.values())
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
