"""What the spec of a run or fleet becomes on this host, and what of it may change later (pure).

Source: runs.md section 5.  Everything works on the canonical specs of runs/specs.py.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

from runs.sizes import Size, clip
from runs.specs import Spec


def merged(spec: Spec) -> Spec:
    """The configuration of a run or fleet with its profile's values where it has none."""
    configuration, profile = spec["configuration"], spec["profile"] or {}
    return {
        **configuration,
        **{
            name: value
            for name, value in profile.items()
            if name in configuration and configuration[name] is None
        },
    }


def effective(
    spec: Spec, known: Sequence[Size], *, name: str | None, public_key: str | None
) -> Spec:
    """A run's spec with every default filled in, as it is stored and compared."""
    found = copy.deepcopy(spec)
    configuration = found["configuration"]
    found["run_name"] = name
    found["repo_id"] = found["repo_id"] or "none"
    found["repo_data"] = found["repo_data"] or {"repo_type": "virtual"}
    found["ssh_key_pub"] = found["ssh_key_pub"] or public_key
    # What runs without an image of its own knows the one kind of GPU alone.
    vendor = None if configuration["image"] else "nvidia"
    configuration["resources"] = clip(configuration["resources"], known, vendor=vendor)
    if configuration["priority"] is None:
        configuration["priority"] = 0
    return found


def effective_fleet(spec: Spec, known: Sequence[Size], *, name: str | None) -> Spec:
    """A fleet's spec as it is stored and compared; a default minimum stays one, for hosts and times change."""
    found = copy.deepcopy(spec)
    found["configuration"]["name"] = name
    resources = found["configuration"]["resources"]
    if resources is not None:
        found["configuration"]["resources"] = clip(resources, known, vendor="nvidia")
    return found


# Changes ---------------------------------------------------------------------------------------

# What a run takes over while it goes on; of a service, what runs/rolling.py brings about.
_UPDATABLE: Mapping[str, frozenset[str]] = {
    "task": frozenset({"priority"}),
    "dev-environment": frozenset({"priority", "inactivity_duration"}),
    "service": frozenset({
        "priority", "replicas", "scaling",
        "commands", "entrypoint", "env", "image", "nvcc", "port", "privileged", "probes", "python", "resources", "shell",
        "single_branch", "user", "working_dir",
    }),
}  # fmt: skip
_UPDATABLE_OF_FLEETS = frozenset(
    [
        "nodes",
        "reservation",
        "tags",
        "resources",
        "backends",
        "regions",
        "availability_zones",
        "instance_types",
        "spot_policy",
        "max_price",
    ]
)


def changed(before: Spec, after: Spec) -> set[str]:
    """The fields in which two objects differ."""
    return {name for name in {*before, *after} if before.get(name) != after.get(name)}


def changes(before: Spec, after: Spec) -> list[str]:
    """The fields in which two specs of runs differ, those of the configuration by their own names."""
    outside = changed(before, after) - {"configuration"}
    return sorted(outside | changed(before["configuration"], after["configuration"]))


def is_updatable(before: Spec, after: Spec) -> bool:
    """Whether a run may become what is wished while it is active."""
    old, new = before["configuration"], after["configuration"]
    return (
        old["type"] == new["type"]
        and changed(before, after) <= {"configuration", "configuration_path"}
        and changed(old, new) <= _UPDATABLE[old["type"]]
    )


def is_updatable_fleet(before: Spec, after: Spec) -> bool:
    """Whether a fleet may become what is wished without being made anew."""
    return (
        changed(before, after) <= {"configuration", "configuration_path"}
        and changed(before["configuration"], after["configuration"]) <= _UPDATABLE_OF_FLEETS
    )
