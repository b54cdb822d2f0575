"""`casemate ps`, `run`, `logs`, `stop`, `delete` and `event` on a service whose jobs are local processes."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator
from typing import Any

import click
import pytest

from core.errors import CasemateError, Invalid, NotFound
from tests.common.runs_site import Site
from tests.common.waiting import press_ctrl_c, until


@pytest.fixture
def fleet(site: Site) -> Site:
    site.fleet()
    return site


def lines(text: str) -> Iterator[list[str]]:
    for line in text.splitlines():
        yield line.split()


def test_the_list_shows_what_is_active_or_the_last_one(fleet: Site) -> None:
    assert fleet.run("ps").stdout.split() == [
        "NAME", "BACKEND", "RESOURCES", "PRICE", "STATUS", "SUBMITTED",
    ]  # fmt: skip
    for name in ("one", "two"):
        fleet.submit(name, "true")
        fleet.until(name, "done")

    (_, only) = lines(fleet.run("ps").stdout)
    assert only[0] == "two"
    assert "exited" in only
    assert [line[0] for line in lines(fleet.run("ps", "-a").stdout)][1:] == ["two", "one"]
    assert [each["run_spec"]["run_name"] for each in fleet.json("ps", "-n", "1")["runs"]] == ["two"]

    fleet.submit("three", "sleep 100")
    fleet.until("three", "running")
    assert [line[0] for line in lines(fleet.run("ps").stdout)][1:] == ["three"]


def test_one_run_is_shown_by_name_and_by_id(fleet: Site) -> None:
    fleet.submit("hello", "echo hello world")
    told = fleet.until("hello", "done")

    assert fleet.json("run", "get", "--id", told["id"])["id"] == told["id"]
    assert "hello" in fleet.run("run", "get", "hello").stdout
    with pytest.raises(NotFound):
        fleet.run("run", "get", "nobody")
    with pytest.raises((Invalid, click.UsageError)):
        fleet.run("run", "get")
    with pytest.raises(CasemateError, match="id"):
        fleet.run("run", "get", "--id", "no-id")


def test_the_output_comes_byte_for_byte(fleet: Site) -> None:
    fleet.submit("hello", r"printf 'a\377b\n'; seq 1 3000")
    fleet.until("hello", "done")

    said = fleet.run("logs", "hello").stdout_bytes

    assert said.startswith(b"a\xffb\r\n1\r\n")
    assert said.endswith(b"\r\n3000\r\n")
    assert said.count(b"\n") == 3001


def test_the_output_as_the_server_tells_it(fleet: Site) -> None:
    fleet.submit("bytes", "printf word")
    fleet.until("bytes", "done")

    (entry,) = fleet.json("logs", "bytes")

    assert base64.b64decode(entry["message"]) == b"word"
    for words in (("logs", "bytes", "-f"), ("ps", "-w")):
        with pytest.raises(Invalid, match="one document"):
            fleet.json(*words)


def test_the_output_since_a_time(fleet: Site) -> None:
    fleet.submit("hello", "echo early")
    fleet.until("hello", "done")

    assert fleet.run("logs", "hello", "--since", "1h").stdout_bytes == b"early\r\n"
    assert fleet.run("logs", "hello", "--since", "2099-01-02T03:04:05Z").stdout == ""
    with pytest.raises(Invalid, match="--since"):
        fleet.run("logs", "hello", "--since", "yesterday")


def test_the_output_of_one_job_of_several(site: Site) -> None:
    site.fleet(nodes="0..2")
    site.submit("pair", "echo rank $DSTACK_NODE_RANK", nodes=2)
    site.until("pair", "done")

    assert site.run("logs", "pair", "--job", "1").stdout_bytes == b"rank 1\r\n"
    with pytest.raises(NotFound, match="no job 7"):
        site.run("logs", "pair", "--job", "7")


def test_a_followed_log_ends_with_the_run(fleet: Site) -> None:
    gate = fleet.home / "gate"
    fleet.submit("long", f"echo begun; until test -e {gate}; do sleep 0.05; done; echo over")
    fleet.until("long", "running")
    following = fleet.start("logs", "long", "-f")
    assert following.stdout is not None
    assert following.stdout.readline() == "begun\n"

    gate.touch()

    assert following.communicate(timeout=30) == ("over\n", "")
    assert following.returncode == 0


def test_an_interrupted_follower_leaves_the_run_alone(fleet: Site) -> None:
    fleet.submit("long", "echo begun; sleep 100")
    fleet.until("long", "running")
    following = fleet.start("logs", "long", "-f")
    assert following.stdout is not None
    following.stdout.readline()

    press_ctrl_c(following)

    assert following.communicate(timeout=30) == ("", "\n")
    assert following.returncode == 130
    assert fleet.json("run", "get", "long")["status"] == "running"


def test_a_stop_is_asked_for_and_waited_for(fleet: Site) -> None:
    fleet.submit("long", "sleep 100")
    fleet.until("long", "running")

    with pytest.raises(Invalid, match="-y"):
        fleet.run("stop", "long", input="")
    fleet.run("stop", "long", input="n\n", code=1)
    assert fleet.json("run", "get", "long")["status"] == "running"
    done = fleet.run("stop", "long", "--wait", input="y\n")

    assert "long" in done.output
    assert fleet.json("run", "get", "long")["status"] == "terminated"
    with pytest.raises(NotFound):
        fleet.run("stop", "nobody", "-y")


def test_an_abort_waits_for_nothing(fleet: Site) -> None:
    fleet.submit("long", "trap '' TERM; echo deaf; while true; do sleep 1; done")
    fleet.until("long", "running")
    until(lambda: fleet.run("logs", "long").stdout_bytes == b"deaf\r\n", seconds=20)

    fleet.run("stop", "long", "-x", "-y", "--wait")

    assert fleet.json("run", "get", "long")["status"] in ("terminated", "failed")


def test_a_run_that_has_ended_is_deleted_by_its_file(fleet: Site) -> None:
    fleet.submit("long", "sleep 100")
    file = fleet.home / "long.dstack.yml"
    with pytest.raises(CasemateError, match="long"):
        fleet.run("delete", "-f", file, "-y")
    fleet.run("stop", "long", "-y", "--wait")

    fleet.run("delete", "-f", file, input="y\n")

    with pytest.raises(NotFound):
        fleet.run("run", "get", "long")
    with pytest.raises(NotFound):
        fleet.run("delete", "-f", file, "-y")


def test_what_happened_is_told_in_order(fleet: Site) -> None:
    fleet.submit("hello", "true")
    fleet.until("hello", "done")

    told = fleet.run("event", "--target-run", "hello").stdout.splitlines()

    assert re.fullmatch(
        r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\] \[.*admin\] \[run hello\] Run submitted\. Status: SUBMITTED",
        told[0],
    )
    assert told[-1].endswith("Run status changed TERMINATING -> DONE")
    assert messages(fleet.json("event", "--within-fleet", "default"))[0].startswith("Fleet")
    kinds = [
        target["type"]
        for each in fleet.json("event", "--include-target-type", "job")
        for target in each["targets"]
    ]
    assert "job" in kinds
    assert "run" not in kinds
    assert fleet.json("event", "--since", "2099-01-01T00:00") == []
    with pytest.raises(NotFound):
        fleet.run("event", "--target-run", "nobody")


def messages(events: Any) -> list[str]:
    return [each["message"] for each in events]


def test_more_than_one_page_of_events_is_shown_since_a_time(fleet: Site) -> None:
    for number in range(12):
        fleet.submit(f"run{number}", "true")
        fleet.until(f"run{number}", "done")

    told = messages(fleet.json("event", "--since", "1h"))

    assert len(told) > 100
    assert told.count("Run submitted. Status: SUBMITTED") == 12
