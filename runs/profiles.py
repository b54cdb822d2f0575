"""How a run or fleet is placed and kept: what may stand in a configuration, or in a profile beside it."""

from __future__ import annotations

from typing import Any

from marshmallow import (
    fields,
    validate,
)

from runs.bodies import Body, optional
from runs.fields import (
    Amount,
    Choice,
    Duration,
    Flag,
    Items,
    OffDuration,
    Part,
    Short,
    Table,
    Text,
    Whole,
    expand_reference,
)

# What the client takes for a backend; every offer of ours is `remote`.
BACKENDS = (
    "amddevcloud", "aws", "azure", "cloudrift", "crusoe", "cudo", "datacrunch", "daytona", "digitalocean",
    "dstack", "gcp", "hotaisle", "jarvislabs", "kubernetes", "lambda", "lium", "local", "nebius", "oci",
    "remote", "runpod", "seeweb", "slurm", "tensordock", "vastai", "verda", "vultr",
)  # fmt: skip


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

    kinds, shapes = ("boolean",), (Retry,)

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
