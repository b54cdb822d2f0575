"""What a wish becomes on a host, and how it may change."""

from __future__ import annotations

from typing import Any

import pytest

from core.config_runs import OffersConfig
from runs import planner
from runs.sizes import Room, sizes_of
from runs.specs import FleetSpec, RunSpec

KNOWN = sizes_of(OffersConfig(), Room(8, 64 * 1024))


def spec(**more: Any) -> Any:
    kind = {"type": "task", "commands": ["a", "b"], **more}
    return RunSpec().load({"run_name": "one", "configuration": kind})


def effective(**more: Any) -> Any:
    return planner.effective(spec(**more), KNOWN, name="one", public_key="ssh-ed25519 AAAA\n")


def test_what_is_effective_stays_so() -> None:
    once = effective()

    assert planner.effective(once, KNOWN, name="one", public_key="another") == once


def test_a_configuration_wins_over_its_profile() -> None:
    given = RunSpec().load(
        {
            "configuration": {"type": "task", "commands": ["x"], "max_duration": 5},
            "profile": {"max_duration": 9, "idle_duration": 7},
        }
    )

    merged = planner.merged(given)
    assert (merged["max_duration"], merged["idle_duration"]) == (5, 7)


@pytest.mark.parametrize(
    ("kind", "change", "good"),
    [
        ({"type": "task"}, {"priority": 3}, True),
        ({"type": "task"}, {"commands": ["z"]}, False),
        ({"type": "service", "port": 80}, {"commands": ["z"], "env": {"A": "1"}}, True),
        ({"type": "service", "port": 80}, {"port": 81, "replicas": 2, "image": "x"}, True),
        ({"type": "service", "port": 80}, {"probes": [{"type": "http"}], "user": "a"}, True),
        ({"type": "service", "port": 80}, {"commands": ["z"], "auth": False}, False),
        ({"type": "service", "port": 80}, {"max_duration": 60}, False),
        ({"type": "service", "port": 80}, {"priority": 3}, True),
        ({"type": "service", "port": 80}, {"auth": False}, False),
    ],
)
def test_an_active_run_may_change_in_some_fields(kind: Any, change: Any, good: bool) -> None:
    before = effective(**kind)

    assert planner.is_updatable(before, effective(**{**kind, **change})) is good
    assert not planner.is_updatable(before, {**before, "ssh_key_pub": "x"})


def test_a_dev_environment_may_change_when_it_ends() -> None:
    def found(**more: Any) -> Any:
        kind = {"type": "dev-environment", **more}
        return RunSpec().load({"run_name": "dev", "configuration": kind})

    assert planner.is_updatable(found(), found(inactivity_duration=60, priority=1))
    assert not planner.is_updatable(found(), found(env={"A": "1"}))


def test_changes_are_named_by_their_fields() -> None:
    kind: Any = {"type": "service", "port": 80}
    after = {**effective(**kind, env={"A": "1"}, replicas=2), "configuration_path": "x.yml"}

    assert planner.changes(effective(**kind), after) == ["configuration_path", "env", "replicas"]


def test_a_fleet_may_change_in_some_fields() -> None:
    def fleet(**more: Any) -> Any:
        given = {"configuration": {"type": "fleet", "nodes": 1, **more}, "profile": {}}
        return planner.effective_fleet(FleetSpec().load(given), [], name="f")

    assert planner.is_updatable_fleet(fleet(), fleet(nodes=2))
    assert not planner.is_updatable_fleet(fleet(), fleet(idle_duration=3))
