"""Configurations: short forms, defaults, refusals; the canonical form is the same for the same wish."""

from __future__ import annotations

from typing import Any

import pytest
from marshmallow import ValidationError

from runs.specs import FleetSpec, RunSpec, is_name


def task(**more: Any) -> dict[str, Any]:
    return {"configuration": {"type": "task", "commands": ["true"], **more}}


def load(**more: Any) -> Any:
    return RunSpec().load(task(**more))["configuration"]


def refusal(**more: Any) -> Any:
    with pytest.raises(ValidationError) as refused:
        load(**more)
    kind = more.get("type", "task")
    return refused.value.messages["configuration"][kind]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ({"cpu": 4}, ("cpu", {"arch": None, "count": {"min": 4, "max": 4}})),
        ({"cpu": "2..8"}, ("cpu", {"arch": None, "count": {"min": 2, "max": 8}})),
        ({"cpu": "x86:4.."}, ("cpu", {"arch": "x86", "count": {"min": 4, "max": None}})),
        ({"cpu": {"min": 1}}, ("cpu", {"arch": None, "count": {"min": 1, "max": None}})),
        ({"memory": "16GB.."}, ("memory", {"min": 16.0, "max": None})),
        ({"memory": "512MB"}, ("memory", {"min": 0.5, "max": 0.5})),
        ({"memory": 8}, ("memory", {"min": 8.0, "max": 8.0})),
        ({"memory": "..1TB"}, ("memory", {"min": None, "max": 1024.0})),
        ({"disk": "50GB"}, ("disk", {"size": {"min": 50.0, "max": 50.0}})),
        ({"disk": None}, ("disk", None)),
    ],
)
def test_short_forms_become_the_long_one(given: Any, meant: tuple[str, Any]) -> None:
    name, value = meant
    assert load(resources=given)["resources"][name] == value


def test_a_gpu_is_known_by_its_parts() -> None:
    gpu = load(resources={"gpu": "nvidia:A100,H100:40GB..:2"})["resources"]["gpu"]

    assert gpu["vendor"] == "nvidia"
    assert gpu["name"] == ["A100", "H100"]
    assert gpu["memory"] == {"min": 40.0, "max": None}
    assert gpu["count"] == {"min": 2, "max": 2}


def test_what_is_absent_is_filled_in_as_clients_do() -> None:
    resources = load()["resources"]

    assert resources == load(resources={})["resources"]
    assert resources["cpu"]["count"] == {"min": 2, "max": None}
    assert resources["memory"] == {"min": 8.0, "max": None}
    assert resources["gpu"]["count"] == {"min": 0, "max": None}
    assert load()["nodes"] == 1


@pytest.mark.parametrize(
    ("given", "meant"),
    [("1h", 3600), ("90s", 90), (30, 30), ("30", 30), ("off", "off"), (False, "off"), (True, None)],
)
def test_durations_are_seconds(given: Any, meant: Any) -> None:
    assert load(max_duration=given)["max_duration"] == meant


def test_an_idle_duration_that_is_off_is_minus_one() -> None:
    assert load(idle_duration="off")["idle_duration"] == -1
    assert load(idle_duration=-1)["idle_duration"] == -1


@pytest.mark.parametrize(
    ("given", "local", "inside"),
    [(8000, 8000, 8000), ("80:8000", 80, 8000), ("*:8000", None, 8000), ("8000", 8000, 8000)],
)
def test_ports_are_pairs(given: Any, local: int | None, inside: int) -> None:
    assert load(ports=[given])["ports"] == [{"local_port": local, "container_port": inside}]


def test_variables_come_as_a_list_or_an_object() -> None:
    assert load(env=["A=1", "B=x=y"])["env"] == {"A": "1", "B": "x=y"}
    assert load(env={"A": 1})["env"] == {"A": "1"}
    assert load(env=["C"])["env"] == {"C": {"key": "C"}}


def test_references_to_fleets_are_objects() -> None:
    assert load(fleets=["a", "b/c", {"name": "d"}])["fleets"] == [
        {"project": None, "name": "a"},
        {"project": "b", "name": "c"},
        {"project": None, "name": "d"},
    ]


@pytest.mark.parametrize(
    ("more", "where", "said"),
    [
        ({"bogus": 1}, "bogus", "Extra inputs are not permitted"),
        ({"commands": "true"}, "commands", "Input should be a valid list"),
        ({"privileged": "perhaps"}, "privileged", "Input should be a valid boolean"),
        ({"nodes": 0}, "nodes", "Input should be greater than or equal to 1"),
        ({"nodes": 10**30}, "nodes", "Input should be a valid integer"),
        ({"max_duration": "soon"}, "max_duration", "Value error, Cannot parse the duration soon"),
        ({"max_duration": -5}, "max_duration", "Value error, Duration cannot be negative"),
        ({"max_price": 0}, "max_price", "Input should be greater than 0"),
        ({"name": "a\0b"}, "name", "Value error, a text cannot contain NUL"),
        ({"name": "\ud800"}, "name", "Input should be a valid string"),
        ({"spot_policy": "x"}, "spot_policy", "Input should be 'spot', 'on-demand' or 'auto'"),
        ({"shell": "fish"}, "shell", "Value error, must be `sh`, `bash` or an absolute path"),
    ],
)
def test_a_bad_value_is_named_with_its_rule(more: Any, where: str, said: str) -> None:
    assert refusal(**more)[where] == [said]


@pytest.mark.parametrize(
    "memory", ["8..4", "..", "many", {"min": "x"}, {"least": 1}, [], True, "1PB"]
)
def test_a_range_that_is_none_is_refused(memory: Any) -> None:
    assert "memory" in refusal(resources={"memory": memory})["resources"]


def test_something_must_be_run() -> None:
    with pytest.raises(ValidationError, match="Either `commands` or `image` must be set"):
        RunSpec().load({"configuration": {"type": "task"}})


def test_the_kind_decides_what_is_known() -> None:
    for kind, field in (("service", {"port": 80}), ("dev-environment", {"ide": "vscode"})):
        known = {"type": kind, **field, **({"commands": ["x"]} if kind == "service" else {})}
        assert RunSpec().load({"configuration": known})["configuration"]["type"] == kind
    with pytest.raises(ValidationError, match="does not match any of the expected tags"):
        RunSpec().load({"configuration": {"type": "nope"}})
    with pytest.raises(ValidationError, match="Unable to extract tag"):
        RunSpec().load({"configuration": {}})


def fleet(**more: Any) -> Any:
    given = {"configuration": {"type": "fleet", **more}, "profile": {}}
    return FleetSpec().load(given)["configuration"]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("0..1", {"min": 0, "max": 1}),
        (2, {"min": 2, "max": 2}),
        ("3", {"min": 3, "max": 3}),
        ("1..", {"min": 1, "max": None}),
        ({"min": 1, "max": 3, "target": 2}, {"min": 1, "target": 2, "max": 3}),
        ({"min": 1, "max": 3, "target": 1}, {"min": 1, "max": 3}),
    ],
)
def test_nodes_of_a_fleet_are_a_range(given: Any, meant: Any) -> None:
    assert fleet(nodes=given)["nodes"] == meant


@pytest.mark.parametrize(
    "nodes", ["2..1", 0, -1, "x", {"min": 2, "max": 3, "target": 1}, [], "0..0"]
)
def test_nodes_that_are_no_range_are_refused(nodes: Any) -> None:
    with pytest.raises(ValidationError):
        fleet(nodes=nodes)


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("ab", True),
        ("a", False),
        ("-x", False),
        ("a" * 41, True),
        ("a" * 42, False),
        ("aB", False),
        ("ab\n", False),
    ],
)
def test_a_name_has_its_rule(name: str, good: bool) -> None:
    assert is_name(name) is good


def test_loading_twice_changes_nothing() -> None:
    once = RunSpec().load(task(env=["A=1"], ports=["80:90"], resources={"gpu": "A100"}, retry=True))

    assert RunSpec().load(once) == once


@pytest.mark.parametrize(
    ("probe", "where"),
    [
        ({"url": "health"}, "url"),
        ({"url": "/a b"}, "url"),
        ({"url": "/a\r\nHost: x"}, "url"),
        ({"timeout": 0}, "timeout"),
        ({"timeout": "1h"}, "timeout"),
        ({"interval": "0s"}, "interval"),
        ({"ready_after": 0}, "ready_after"),
        ({"body": "x"}, "body"),
        ({"body": "x", "method": "head"}, "body"),
        ({"headers": [{"name": "a"}]}, "headers"),
        ({"headers": [{"name": "a", "value": "b"}] * 17}, "headers"),
    ],
)
def test_a_probe_that_cannot_be_sent_is_refused(probe: Any, where: str) -> None:
    refused = refusal(type="service", port=80, probes=[{"type": "http", **probe}])

    assert where in refused["probes"][0]


def test_a_service_has_at_most_ten_probes() -> None:
    assert "probes" in refusal(type="service", port=80, probes=[{"type": "http"}] * 11)
