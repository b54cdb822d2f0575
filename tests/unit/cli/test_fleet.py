"""`casemate fleet`, and `casemate apply` of a fleet."""

from __future__ import annotations

import click
import pytest

from core.errors import CasemateError, Invalid, NotFound
from tests.common.runs_site import SMALL, Site
from tests.common.waiting import until


def test_a_fleet_is_made_shown_and_deleted(site: Site) -> None:
    assert site.run("fleet").stdout.split() == [
        "FLEET", "INSTANCE", "BACKEND", "RESOURCES", "PRICE", "STATUS", "CREATED",
    ]  # fmt: skip
    site.fleet("pool", nodes="0..2", idle_duration="1h")

    assert "pool" in site.run("fleet").stdout
    assert "pool" in site.run("fleet", "list").stdout
    assert [each["name"] for each in site.json("fleet", "list")["fleets"]] == ["pool"]
    told = site.json("fleet", "get", "pool")
    assert told["spec"]["configuration"]["idle_duration"] == 3600
    assert site.json("fleet", "get", "--id", told["id"])["name"] == "pool"

    site.run("fleet", "delete", "pool", input="n\n", code=1)
    with pytest.raises(Invalid, match="-y"):
        site.run("fleet", "delete", "pool")
    site.run("fleet", "delete", "pool", "-y")

    until(lambda: site.json("fleet", "list")["fleets"] == [], seconds=20)
    with pytest.raises(NotFound):
        site.run("fleet", "get", "pool")
    with pytest.raises(NotFound):
        site.run("fleet", "delete", "pool", "-y")


def test_a_fleet_is_named_in_one_way(site: Site) -> None:
    with pytest.raises((Invalid, click.UsageError)):
        site.run("fleet", "get")
    with pytest.raises((Invalid, click.UsageError)):
        site.run("fleet", "get", "pool", "--id", "1")


def test_its_instances_are_listed_and_deleted_one_by_one(site: Site) -> None:
    site.fleet("warm", nodes=1)

    def idle() -> bool:
        (fleet,) = site.json("fleet", "list")["fleets"]
        return [each["status"] for each in fleet["instances"]] == ["idle"]

    until(idle, seconds=20)
    assert "idle" in site.run("fleet").stdout
    (before,) = site.json("fleet", "get", "warm")["instances"]

    site.run("fleet", "delete", "warm", "-i", "0", "-y")

    def replaced() -> bool:
        return before["id"] not in [
            each["id"] for each in site.json("fleet", "get", "warm")["instances"]
        ]

    until(replaced, seconds=20)


def test_the_apply_of_a_fleet_waits_for_its_machines(site: Site) -> None:
    file = site.file(
        {"type": "fleet", "name": "warm", "nodes": 1, "resources": {**SMALL, "gpu": 0}}
    )

    said = site.run("apply", "-f", file, input="y\n").stdout

    for word in ("Project", "main", "User", "admin", "warm", "idle"):
        assert word in said
    (instance,) = site.json("fleet", "get", "warm")["instances"]
    assert instance["status"] == "idle"


def test_a_fleet_that_is_the_same_is_left_alone_and_a_changed_one_is_changed(site: Site) -> None:
    site.fleet("pool", nodes="0..1")
    first = site.json("fleet", "get", "pool")

    said = site.run("apply", "-y", "-d", "-f", site.home / "fleet.dstack.yml").output
    assert "Detected no changes" in said
    site.fleet("pool", nodes="0..2")
    changed = site.json("fleet", "get", "pool")
    assert (changed["id"], changed["spec"]["configuration"]["nodes"]["max"]) == (first["id"], 2)

    site.fleet("pool", nodes="0..2", idle_duration="2h")

    again = site.json("fleet", "get", "pool")
    assert again["id"] != first["id"]
    assert again["spec"]["configuration"]["idle_duration"] == 7200


def test_a_fleet_in_use_is_not_deleted(site: Site) -> None:
    site.fleet("pool")
    site.submit("long", "sleep 100")
    site.until("long", "running")

    with pytest.raises(CasemateError, match="in use"):
        site.run("fleet", "delete", "pool", "-y")


def test_a_fleet_is_deleted_by_its_file(site: Site) -> None:
    site.fleet("pool")

    site.run("delete", "-f", site.home / "fleet.dstack.yml", "-y")

    until(lambda: site.json("fleet", "list")["fleets"] == [], seconds=20)
