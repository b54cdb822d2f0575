"""Runs and fleets as they are submitted, loaded into the one canonical form that is stored and answered.

Source: runs.md section 5 and the models of the published API (names, defaults and limits of each field).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from marshmallow import (
    fields,
    post_load,
    validate,
)

from core.errors import Invalid
from runs.bodies import Body, default_of, optional, several
from runs.configurations import AnyConfiguration
from runs.fields import (
    Amount,
    Choice,
    Environment,
    Flag,
    Items,
    OffDuration,
    Part,
    Short,
    Table,
    Text,
    Whole,
    bad,
    expand_nodes,
)
from runs.profiles import BACKENDS, NamedProfile, Retry, RetryRule
from runs.resources import Resources

# A spec, or a part of one, in its canonical form.
Spec = dict[str, Any]

# Bytes of JSON: each of a run's jobs carries a copy.
MAX_SPEC = 256 * 1024


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


class Nodes(Body):
    """How many instances a fleet has: at least, at first, at most (null: any number)."""

    min = Whole(0, 10_000, load_default=0)
    target = optional(Whole, 0, 10_000)
    max = optional(Whole, 0, 10_000)

    @post_load
    def _fill(self, data: dict[str, Any], **kwargs: Any) -> dict[str, Any]:
        least, target, most = data["min"], data["target"], data["max"]
        target = least if target is None else target
        if most is not None and most < least or most == 0:
            raise bad("`max` must be at least 1 and not less than `min`")
        if target < least or (most is not None and target > most):
            raise bad("`target` must be between `min` and `max`")
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


_NAME = re.compile(r"[a-z][a-z0-9-]{1,40}")


def is_name(text: str) -> bool:
    """Whether a text may name a run or a fleet."""
    return _NAME.fullmatch(text) is not None


def check_size(spec: Mapping[str, Any], name: str) -> None:
    """Refuses a spec that is too large to be kept with each job; `name` is what the request calls it."""
    if len(json.dumps(spec)) > MAX_SPEC:
        raise Invalid.field(name, f"must be at most {MAX_SPEC // 1024} KiB as JSON")


NAME_RULE = "Resource name should match regex '^[a-z][a-z0-9-]{1,40}$'"
