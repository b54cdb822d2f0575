"""What is deleted after a while, and what stays."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest
from sqlalchemy import select, update

from core.config import Config
from models.base import Database
from models.event import EventTarget
from models.run import Run, RunJob
from runs.logs import log_of
from runs.moments import now_us
from runs.pruning import DAY_US, prune
from tests.api.runs.conftest import Api, begin
from tests.common.waiting import until
from vmm.service import Vms


def files(config: Config) -> set[Path]:
    return {path for path in (config.data_dir / "run-logs").rglob("*") if path.is_file()}


def test_what_is_over_for_long_goes_and_what_is_active_stays(
    api: Api, vms: Vms, database: Database, config: Config
) -> None:
    api.run("true", name="over")
    host = begin(vms)
    over = api.until("over", "failed")
    host.end()
    api.run("true", name="active")
    active = api.get("active")
    for run in (over, active):
        log = log_of(config.data_dir, run["latest_job_submission"]["id"])
        log.append(b"said")
        log.close()
        os.utime(log.path, (0, 0))
    # An id of one in 256 begins with that too.
    (config.data_dir / "run-logs/ab").mkdir(exist_ok=True)
    orphan = config.data_dir / "run-logs/ab/abc.log"
    orphan.touch()
    os.utime(orphan, (0, 0))
    fresh = orphan.with_name("abd.log")
    fresh.touch()

    prune(database, config.data_dir, 0)
    assert api.get("over")["id"] == over["id"]
    assert api.events(target_runs=[over["id"]])
    assert orphan not in files(config)

    prune(database, config.data_dir, now_us())

    assert [run["id"] for run in api.ask("/api/runs/list", {})] == [active["id"]]
    assert api.events() == []
    kept = active["latest_job_submission"]["id"]
    assert files(config) == {log_of(config.data_dir, kept).path, fresh}
    with database.reading() as session:
        assert session.scalars(select(RunJob.id)).all() == [kept]
        assert session.scalars(select(EventTarget.event_id)).all() == []


def test_a_fleet_that_is_gone_goes_with_its_instances(
    api: Api, vms: Vms, sweeper: None, database: Database, config: Config
) -> None:
    host = begin(vms)
    api.fleet("old", nodes="0..1")
    api.run("true", name="one")
    api.until("one", "done")
    api.ask("fleets/delete", {"names": ["old"]})
    until(lambda: api.ask("fleets/list", {}) == [], seconds=20, what="the end of the fleet")
    host.end()
    api.fleet("new")
    assert len(api.ask("/api/fleets/list", {})) == 2

    prune(database, config.data_dir, now_us())

    assert [fleet["name"] for fleet in api.ask("/api/fleets/list", {})] == ["new"]
    assert api.ask("/api/instances/list", {}) == []


@pytest.mark.parametrize(("keep_days", "is_kept"), [(1, False), (3, True)])
def test_the_configuration_says_how_long_a_run_is_kept(
    api: Api, vms: Vms, database: Database, keep_days: int, is_kept: bool
) -> None:
    api.run("true", name="over")
    host = begin(vms)
    api.until("over", "failed")
    host.end()
    two_days_ago = now_us() - 2 * DAY_US
    with database.writing() as session:
        session.execute(update(Run).values(processed_us=two_days_ago))
    kept = replace(vms.config.runs, keep_days=keep_days)
    orphan = vms.config.data_dir / "run-logs/ab/abc.log"
    orphan.parent.mkdir(parents=True, exist_ok=True)
    orphan.touch()
    os.utime(orphan, (0, 0))

    host = begin(replace(vms, config=replace(vms.config, runs=kept)))
    until(lambda: not orphan.exists(), seconds=20, what="the end of the pruning")
    host.end()

    assert bool(api.ask("/api/runs/list", {})) is is_kept
