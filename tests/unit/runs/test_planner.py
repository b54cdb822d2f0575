"""What a host offers, what a wish becomes on it, and the jobs of a run."""

from __future__ import annotations

from typing import Any

import pytest

from core.config_runs import OffersConfig, OfferSize
from runs import planner
from runs.planner import Room, Size
from runs.specs import FleetSpec, RunSpec

LARGE, SMALL = Room(8, 64 * 1024), Room(1, 3 * 1024)


def spec(**more: Any) -> Any:
    kind = {"type": "task", "commands": ["a", "b"], **more}
    return RunSpec().load({"run_name": "one", "configuration": kind})


def effective(room: Room = LARGE, **more: Any) -> Any:
    known = planner.sizes(OffersConfig(), room)
    return planner.effective(spec(**more), known, name="one", public_key="ssh-ed25519 AAAA\n")


def test_the_usual_sizes_go_up_to_the_host() -> None:
    names = [size.name for size in planner.sizes(OffersConfig(), Room(3, 10 * 1024))]

    assert names == [
        "cpu1-mem1",
        "cpu1-mem2",
        "cpu1-mem4",
        "cpu1-mem8",
        "cpu2-mem2",
        "cpu2-mem4",
        "cpu2-mem8",
    ]


def test_sizes_of_the_configuration_take_their_place_cheapest_first() -> None:
    config = OffersConfig(
        (
            OfferSize("big", 4, 8, 50, 2.0),
            OfferSize("little", 1, 1, 10, 1.0),
            OfferSize("huge", 99, 1),
        )
    )

    assert planner.sizes(config, LARGE) == [
        Size("little", 1, 1024, 10, 1.0), Size("big", 4, 8192, 50, 2.0),
    ]  # fmt: skip


def test_default_minima_are_clipped_to_a_small_host() -> None:
    resources = effective(SMALL)["configuration"]["resources"]

    assert resources["cpu"]["count"]["min"] == 1
    assert resources["memory"]["min"] == 2.0
    assert planner.candidates(
        effective(SMALL)["configuration"], resources, planner.sizes(OffersConfig(), SMALL)
    )


def test_default_minima_are_clipped_to_the_sizes_of_the_configuration() -> None:
    known = planner.sizes(OffersConfig((OfferSize("little", 1, 2, 20),)), LARGE)

    given = spec(resources={"disk": "100GB.."})
    plain = planner.effective(given, known, name="one", public_key=None)["configuration"]

    assert planner.candidates(plain, plain["resources"], known) == known


def test_a_wish_is_never_clipped() -> None:
    wished = effective(SMALL, resources={"cpu": "3..", "memory": "9GB.."})["configuration"][
        "resources"
    ]

    assert wished["cpu"]["count"]["min"] == 3
    assert wished["memory"]["min"] == 9.0


def test_what_is_effective_stays_so() -> None:
    once = effective()

    known = planner.sizes(OffersConfig(), LARGE)
    assert planner.effective(once, known, name="one", public_key="another") == once


@pytest.mark.parametrize(
    ("resources", "good"),
    [
        ({"cpu": 2, "memory": "4GB"}, True),
        ({"cpu": 1, "memory": "4GB"}, False),
        ({"cpu": "1..2", "memory": "1GB.."}, True),
        ({"cpu": 2, "memory": "..2GB"}, False),
        ({"cpu": "arm:2", "memory": "4GB"}, False),
        ({"cpu": 2, "memory": "4GB", "gpu": 1}, False),
        ({"cpu": 2, "memory": "4GB", "gpu": "0..1"}, True),
        ({"cpu": 2, "memory": "4GB", "disk": "200GB.."}, False),
    ],
)
def test_a_size_fits_or_not(resources: Any, good: bool) -> None:
    wanted = spec(resources=resources)["configuration"]["resources"]

    assert planner.fits(Size("x", 2, 4096, 100, 0.0), wanted) is good


def test_a_price_and_a_place_can_rule_a_host_out() -> None:
    known = [Size("x", 2, 8192, 100, 0.5)]
    for more, count in (
        ({}, 1), ({"max_price": 0.4}, 0), ({"backends": ["aws"]}, 0), ({"backends": ["remote"]}, 1),
        ({"regions": ["moon"]}, 0), ({"spot_policy": "spot"}, 0), ({"spot_policy": "auto"}, 1),
        ({"instance_types": ["y"]}, 0), ({"reservation": "r"}, 0),
    ):  # fmt: skip
        wanted = planner.merged(spec(**more))
        assert len(planner.candidates(wanted, wanted["resources"], known)) == count, more


def test_a_configuration_wins_over_its_profile() -> None:
    given = RunSpec().load(
        {
            "configuration": {"type": "task", "commands": ["x"], "max_duration": 5},
            "profile": {"max_duration": 9, "idle_duration": 7},
        }
    )

    merged = planner.merged(given)
    assert (merged["max_duration"], merged["idle_duration"]) == (5, 7)


def test_commands_are_one_line_of_a_shell() -> None:
    assert planner.commands(spec()) == ["/bin/bash", "-i", "-c", "a && b"]
    assert planner.commands(spec(image="x")) == ["/bin/sh", "-i", "-c", "a && b"]
    assert planner.commands(spec(shell="/bin/zsh"))[0] == "/bin/zsh"
    assert planner.commands(spec(entrypoint="run 'it all'")) == ["run", "it all", "a", "b"]
    assert planner.commands(spec(image="x", commands=[])) == []


def test_each_node_is_a_job_of_its_own() -> None:
    jobs = planner.job_specs(
        effective(nodes=2, max_duration="off", retry=True, user="1000:staff"), 1
    )

    assert [job["job_name"] for job in jobs] == ["one-0-1", "one-1-1"]
    assert jobs[0]["requirements"]["multinode"] is True
    assert jobs[0]["max_duration"] is None
    assert jobs[0]["stop_duration"] == 300
    assert jobs[0]["retry"] == {
        "on_events": ["no-capacity", "interruption", "error"],
        "duration": 3600,
    }
    assert jobs[0]["user"] == {"uid": 1000, "gid": None, "username": None, "groupname": "staff"}


@pytest.mark.parametrize("name", ["²", "٣", "9" * 5000])
def test_a_user_is_a_number_in_plain_digits_alone(name: str) -> None:
    (job,) = planner.job_specs(effective(user=f"{name}:{name}"), 0)

    assert job["user"] == {"uid": None, "gid": None, "username": name, "groupname": name}


def test_ports_are_forwarded_but_for_those_of_the_machinery() -> None:
    (job,) = planner.job_specs(effective(ports=["80:8000", 10999]), 0)

    assert [(app["port"], app["map_to_port"]) for app in job["app_specs"]] == [(8000, 80)]


def test_a_dev_environment_stays_and_tells_the_way() -> None:
    kind = {"type": "dev-environment", "ide": "vscode", "init": ["make"]}
    given = RunSpec().load({"run_name": "dev", "configuration": kind})

    line = planner.commands(given)[-1]
    assert line.startswith("make && ")
    assert "vscode://vscode-remote/ssh-remote+dev/root" in line
    assert line.endswith("exec tail -f /dev/null")


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
