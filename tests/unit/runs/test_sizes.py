"""What sizes of VM a host offers, and which of them a wish fits."""

from __future__ import annotations

from typing import Any

import pytest

from core.config_runs import OffersConfig, OfferSize
from runs import planner
from runs.sizes import Room, Size, candidates, fits, sizes_of
from runs.specs import RunSpec

LARGE, SMALL = Room(8, 64 * 1024), Room(1, 3 * 1024)


def spec(**more: Any) -> Any:
    kind = {"type": "task", "commands": ["a", "b"], **more}
    return RunSpec().load({"run_name": "one", "configuration": kind})


def effective(room: Room = LARGE, **more: Any) -> Any:
    known = sizes_of(OffersConfig(), room)
    return planner.effective(spec(**more), known, name="one", public_key="ssh-ed25519 AAAA\n")


def test_the_usual_sizes_go_up_to_the_host() -> None:
    names = [size.name for size in sizes_of(OffersConfig(), Room(3, 10 * 1024))]

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

    assert sizes_of(config, LARGE) == [
        Size("little", 1, 1024, 10, 1.0), Size("big", 4, 8192, 50, 2.0),
    ]  # fmt: skip


def test_default_minima_are_clipped_to_a_small_host() -> None:
    resources = effective(SMALL)["configuration"]["resources"]

    assert resources["cpu"]["count"]["min"] == 1
    assert resources["memory"]["min"] == 2.0
    assert candidates(effective(SMALL)["configuration"], resources, sizes_of(OffersConfig(), SMALL))


def test_default_minima_are_clipped_to_the_sizes_of_the_configuration() -> None:
    known = sizes_of(OffersConfig((OfferSize("little", 1, 2, 20),)), LARGE)

    given = spec(resources={"disk": "100GB.."})
    plain = planner.effective(given, known, name="one", public_key=None)["configuration"]

    assert candidates(plain, plain["resources"], known) == known


def test_a_wish_is_never_clipped() -> None:
    wished = effective(SMALL, resources={"cpu": "3..", "memory": "9GB.."})["configuration"][
        "resources"
    ]

    assert wished["cpu"]["count"]["min"] == 3
    assert wished["memory"]["min"] == 9.0


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

    assert fits(Size("x", 2, 4096, 100, 0.0), wanted) is good


def test_a_price_and_a_place_can_rule_a_host_out() -> None:
    known = [Size("x", 2, 8192, 100, 0.5)]
    for more, count in (
        ({}, 1), ({"max_price": 0.4}, 0), ({"backends": ["aws"]}, 0), ({"backends": ["remote"]}, 1),
        ({"regions": ["moon"]}, 0), ({"spot_policy": "spot"}, 0), ({"spot_policy": "auto"}, 1),
        ({"instance_types": ["y"]}, 0), ({"reservation": "r"}, 0),
    ):  # fmt: skip
        wanted = planner.merged(spec(**more))
        assert len(candidates(wanted, wanted["resources"], known)) == count, more
