"""What becomes of runs: a real service and scheduler, VMs of the stand-in for QEMU, jobs that are local processes."""

from __future__ import annotations

import base64
import logging
import shutil
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from accounts.roles import ProjectRole
from core.config import Config
from core.config_runs import RunsConfig
from core.errors import Unavailable
from models.base import Database
from models.run import Run, RunJob
from runs.desk import Desk
from runs.logs import log_of
from runs.reports import Reports
from tests.api.runs.conftest import Api, Host, begin
from tests.api.runs.test_wire import issue
from tests.common.waiting import until
from vmm.schemas import StatusQuery
from vmm.service import Vms


def output(api: Api, run: Any) -> str:
    """All that the first job of a run said."""
    query = {
        "run_name": run["run_spec"]["run_name"],
        "job_submission_id": run["latest_job_submission"]["id"],
    }
    told = api.ask("logs/poll", {**query, "limit": 1000})
    return b"".join(base64.b64decode(each["message"]) for each in told["logs"]).decode()


def test_a_task_runs_and_its_output_is_kept(api: Api, background: Host) -> None:
    api.fleet()
    api.run("echo hello world", name="hello")

    run = api.until("hello", "done", "failed", "terminated")

    assert run["status"] == "done"
    last = run["latest_job_submission"]
    assert (last["status"], last["status_message"], last["exit_status"]) == (
        "done",
        "exited (0)",
        0,
    )
    assert last["termination_reason"] == "done_by_runner"
    assert run["termination_reason"] == "all_jobs_done"
    assert output(api, run) == "hello world\r\n"
    (instance,) = api.ask("fleets/get", {"name": "default"})["instances"]
    assert (instance["name"], instance["status"]) == ("default-0", "idle")
    assert api.events(target_runs=[run["id"]]) == [
        "Run submitted. Status: SUBMITTED",
        "Run status changed SUBMITTED -> PROVISIONING",
        "Run status changed PROVISIONING -> RUNNING",
        "Run status changed RUNNING -> TERMINATING. Termination reason: ALL_JOBS_DONE",
        "Run status changed TERMINATING -> DONE",
    ]


def test_a_job_that_fails_says_with_what(api: Api, background: Host) -> None:
    api.fleet()
    api.run("exit 7", name="bad")

    run = api.until("bad", "failed")

    last = run["latest_job_submission"]
    assert (last["exit_status"], last["status_message"]) == (7, "exited (7)")
    assert last["termination_reason"] == "container_exited_with_error"


def test_a_stop_is_kept_and_frees_the_instance(api: Api, background: Host) -> None:
    api.fleet()
    api.run("echo begun; sleep 100", name="long")
    api.until("long", "running")

    assert api.ask("runs/stop", {"runs_names": ["long", "nobody"], "abort": False}) is None

    assert api.get("long")["status"] in ("terminating", "terminated")
    run = api.until("long", "terminated", "done", "failed")
    assert run["status"] == "terminated"
    assert run["latest_job_submission"]["status_message"] == "stopped"
    (stop,) = background.executor.stops
    assert stop[1] == 300
    assert api.ask("fleets/get", {"name": "default"})["instances"][0]["status"] == "idle"


def instance_of(run: Any) -> str:
    return str(run["latest_job_submission"]["job_provisioning_data"]["instance_id"])


def test_the_next_job_of_the_same_user_takes_the_idle_vm(
    api: Api, vms: Vms, background: Host
) -> None:
    api.fleet()
    api.run("true", name="one")
    first = api.until("one", "done")
    api.run("true", name="two")

    second = api.until("two", "done")

    assert instance_of(first) == instance_of(second)
    assert len(api.ask("fleets/get", {"name": "default"})["instances"]) == 1


def test_without_a_fleet_a_run_fails_at_once(api: Api, background: Host) -> None:
    api.run("true", name="lost")

    run = api.until("lost", "failed")

    assert run["latest_job_submission"]["status_message"] == "no fleets"


def test_when_all_nodes_are_taken_there_is_no_capacity(api: Api, background: Host) -> None:
    api.fleet()
    api.run("sleep 100", name="first")
    api.until("first", "running")
    api.run("true", name="second")

    run = api.until("second", "failed")

    assert run["latest_job_submission"]["status_message"] == "no capacity"


def test_a_run_that_retries_waits_for_capacity(
    api: Api, background: Host, monkeypatch: Any
) -> None:
    monkeypatch.setitem(__import__("runs.progress").progress.RETRY_DELAY_US, "no-capacity", 100_000)
    api.fleet()
    api.run("sleep 100", name="first")
    api.until("first", "running")
    api.run("true", name="second", retry=True)
    api.until("second", "pending")

    api.ask("runs/stop", {"runs_names": ["first"], "abort": True})

    run = api.until("second", "done", "failed")
    assert run["status"] == "done"
    assert len(run["jobs"][0]["job_submissions"]) > 1


def test_nodes_are_jobs_that_end_together(api: Api, background: Host) -> None:
    api.fleet(nodes="0..2")
    api.run("echo $DSTACK_NODE_RANK of $DSTACK_NODES_NUM", name="two", nodes=2)

    run = api.until("two", "done", "failed")

    assert run["status"] == "done"
    said = [
        output(api, {**run, "latest_job_submission": job["job_submissions"][-1]})
        for job in run["jobs"]
    ]
    assert said == ["0 of 2\r\n", "1 of 2\r\n"]


def test_a_fleet_keeps_its_least_nodes_and_ends_them_when_deleted(
    api: Api, vms: Vms, background: Host
) -> None:
    api.fleet("warm", nodes=1)

    def statuses() -> list[str]:
        return [each["status"] for each in api.ask("fleets/get", {"name": "warm"})["instances"]]

    until(lambda: statuses() == ["idle"], seconds=20)
    assert vms.status(StatusQuery())["total"] == 1

    api.ask("fleets/delete", {"names": ["warm"]})

    def gone() -> bool:
        return api.post("fleets/get", {"name": "warm"}).status_code == 400

    until(gone, seconds=20)
    assert vms.status(StatusQuery())["total"] == 0


def test_an_idle_instance_ends_after_its_time(api: Api, background: Host) -> None:
    api.fleet(idle_duration=0)
    api.run("true", name="one")
    api.until("one", "done")

    until(lambda: not api.ask("fleets/get", {"name": "default"})["instances"], seconds=20)


def test_a_vm_that_is_lost_interrupts_its_job(api: Api, background: Host) -> None:
    api.fleet()
    api.run("sleep 100", name="long")
    api.until("long", "running")
    (vm_id,) = background.executor.ready

    background.scheduler.reports.on_lost(vm_id, "QEMU was killed")

    run = api.until("long", "failed")
    last = run["latest_job_submission"]
    assert (last["termination_reason"], last["status_message"]) == (
        "instance_unreachable",
        "interrupted",
    )
    until(lambda: not api.ask("fleets/get", {"name": "default"})["instances"], seconds=20)


def test_a_new_scheduler_takes_up_what_runs(api: Api, vms: Vms, sweeper: None) -> None:
    first = begin(vms, boots=False)
    api.fleet()
    api.run("echo once", name="kept")
    api.until("kept", "provisioning")
    until(lambda: first.executor.waiting, seconds=20)
    first.end()

    second = begin(vms)

    try:
        run = api.until("kept", "done", "failed")
        assert run["status"] == "done"
        assert output(api, run) == "once\r\n"
    finally:
        second.end()


def test_a_job_ends_after_its_longest_time(api: Api, background: Host) -> None:
    api.fleet()
    api.run("sleep 100", name="long", max_duration=0)

    run = api.until("long", "failed", "terminated")

    assert run["latest_job_submission"]["termination_reason"] == "max_duration_exceeded"


def test_a_service_has_its_replicas_and_a_path(api: Api, background: Host) -> None:
    api.fleet(nodes="0..2")
    resources = {"cpu": "1..", "memory": "1GB.."}
    wanted = {"type": "service", "port": 8000, "commands": ["sleep 100"], "replicas": 2}
    spec = {"run_name": "web", "configuration": {**wanted, "resources": resources}}
    api.ask("runs/apply", {"plan": {"run_spec": spec}, "force": False})

    def served() -> Any:
        found = api.get("web")
        states = {job["job_submissions"][-1]["status"] for job in found["jobs"]}
        return found if states == {"running"} else None

    run = until(served, seconds=20)
    assert run["service"]["url"] == "/proxy/services/main/web/"
    assert [job["job_spec"]["replica_num"] for job in run["jobs"]] == [0, 1]
    api.ask("runs/stop", {"runs_names": ["web"], "abort": True})
    api.until("web", "terminated")


def test_a_run_is_stopped_at_once_while_its_vm_boots(api: Api, vms: Vms, sweeper: None) -> None:
    host = begin(vms, boots=False)
    try:
        api.fleet()
        api.run("true", name="early")
        until(lambda: host.executor.waiting, seconds=20)

        api.ask("runs/stop", {"runs_names": ["early"], "abort": False})

        assert api.until("early", "terminated", "failed")["status"] == "terminated"
        (vm_id,) = host.executor.waiting
        host.executor.waiting.clear()
        host.executor.boot(vm_id)
        until(lambda: _instances(api)[0]["status"] == "idle", seconds=20)
    finally:
        host.end()


def _instances(api: Api) -> Any:
    return api.ask("fleets/get", {"name": "default"})["instances"]


def test_a_job_that_says_too_much_is_ended(api: Api, background: Host) -> None:
    background.scheduler.desk.config = replace(
        background.scheduler.desk.config, runs=RunsConfig(log_quota=100)
    )
    api.fleet()
    api.run("for i in $(seq 100); do echo a line of text; done; sleep 100", name="loud")

    run = api.until("loud", "failed", "terminated")

    job = run["latest_job_submission"]
    assert job["termination_reason"] == "log_quota_exceeded"
    page = {"run_name": "loud", "job_submission_id": job["id"], "diagnose": True}
    (said,) = api.ask("logs/poll", page)["logs"]
    assert b"[runs] log_quota" in base64.b64decode(said["message"])


def test_a_restart_gives_no_job_a_new_quota(
    api: Api, background: Host, config: Config, vms: Vms
) -> None:
    api.fleet()
    api.run("sleep 1000", name="loud")
    job = api.until("loud", "running")["latest_job_submission"]["id"]
    log = log_of(config.data_dir, job)
    log.append(b"x" * 60)
    log.close()
    fresh = Reports(Desk(vms))
    fresh.desk.config = replace(config, runs=RunsConfig(log_quota=100))

    fresh.on_output(job, b"x" * 60)

    assert api.get("loud")["latest_job_submission"]["termination_reason"] == "log_quota_exceeded"


@pytest.mark.parametrize("has_ssh", [True, False])
def test_a_vm_has_a_port_for_ssh_unless_the_host_says_no(
    api: Api, background: Host, has_ssh: bool
) -> None:
    background.scheduler.desk.config = replace(
        background.scheduler.desk.config, runs=RunsConfig(ssh=has_ssh)
    )
    api.fleet()
    api.run("sleep 1000", name="long")

    job = api.until("long", "running")["latest_job_submission"]["job_provisioning_data"]
    (vm,) = background.vms.status(StatusQuery())["vms"]
    ports = background.vms.published(vm["id"])
    assert (set(ports), job["hostname"]) == ({22} if has_ssh else set(), "127.0.0.1")
    assert job["ssh_port"] == (ports[22].host_port if has_ssh else 22)


def test_without_an_image_the_job_says_so(api: Api, config: Config, background: Host) -> None:
    shutil.rmtree(config.image.path)
    api.fleet()
    api.run("true", name="bare")

    run = api.until("bare", "failed")

    last = run["latest_job_submission"]
    assert last["termination_reason"] == "creating_container_error"
    assert "casemate image build" in last["termination_reason_message"]


def test_a_boot_that_fails_shows_the_end_of_the_console(api: Api, vms: Vms, sweeper: None) -> None:
    host = begin(vms, boots=False)
    try:
        api.fleet()
        api.run("true", name="broken")
        (vm_id,) = until(lambda: list(host.executor.waiting), seconds=20)
        log = vms.reconciler.workdir(vm_id).log("serial")
        log.write_text("one\ntwo\nKernel panic - not syncing\n\n")

        host.scheduler.reports.on_lost(vm_id, "the boot failed")

        last = api.until("broken", "failed")["latest_job_submission"]
        assert last["termination_reason"] == "creating_container_error"
        assert last["termination_reason_message"].endswith("two\nKernel panic - not syncing")
    finally:
        host.end()


def test_an_idle_vm_of_another_user_makes_room(
    api: Api, database: Database, background: Host
) -> None:
    api.fleet()
    api.run("true", name="mine")
    first = api.until("mine", "done")
    bob = Api(api.client, issue(database, "bob", ProjectRole.USER))
    bob.run("true", name="theirs")

    second = api.until("theirs", "done", "failed")

    assert second["status"] == "done"
    assert instance_of(first) != instance_of(second)


def test_what_is_secret_of_a_run_is_nowhere_in_the_clear(
    api: Api, background: Host, config: Config, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    api.fleet()
    wanted = {
        "type": "service",
        "port": 8000,
        "commands": ["test -n $TOKEN && sleep 60"],
        "image": "registry.example/app",
        "resources": {"cpu": "1..", "memory": "1GB.."},
        "env": {"TOKEN": "marker-one"},
        "registry_auth": {"username": "marker-two", "password": "marker-three"},
        "probes": [{"type": "http", "headers": [{"name": "x", "value": "marker-four"}]}],
    }
    asked = {"run_spec": {"run_name": "web", "configuration": wanted}}
    api.ask("runs/get_plan", asked)
    applied = api.ask("runs/apply", {"plan": asked, "force": False})
    run = api.until("web", "running")
    listed = api.ask("/api/runs/list", {})
    again = api.ask("runs/get_plan", asked)
    api.ask("/api/events/list", {})
    api.ask(
        "logs/poll", {"run_name": "web", "job_submission_id": run["latest_job_submission"]["id"]}
    )

    (order,) = background.executor.orders.values()
    assert order.env["TOKEN"] == "marker-one"
    assert order.registry_auth == ("marker-two", "marker-three")
    assert "marker" not in repr(order)
    for answer in (applied, run, listed[0]):
        assert answer["run_spec"] == again["effective_run_spec"]
        assert answer["run_spec"]["configuration"]["env"] == {"TOKEN": "marker-one"}
        assert answer["jobs"][0]["job_spec"]["registry_auth"]["password"] == "marker-three"
        assert answer["jobs"][0]["job_spec"]["probes"][0]["headers"][0]["value"] == "marker-four"
    assert "marker" not in caplog.text
    files = [path for path in config.data_dir.rglob("*") if path.is_file()]
    assert any(path.name.endswith(".db") for path in files)
    assert [path for path in files if b"marker" in path.read_bytes()] == []


def test_an_update_seals_what_is_secret_of_it(api: Api, database: Database) -> None:
    wanted = {"type": "service", "port": 8000, "commands": ["true"], "env": {"TOKEN": "marker-old"}}
    asked = {"run_spec": {"run_name": "web", "configuration": wanted}}
    run = api.ask("runs/apply", {"plan": asked, "force": False})

    wanted["priority"] = 7
    changed = api.ask("runs/apply", {"plan": asked | {"current_resource": run}, "force": False})

    assert changed["id"] == run["id"]
    configuration = changed["run_spec"]["configuration"]
    assert (configuration["priority"], configuration["env"]) == (7, {"TOKEN": "marker-old"})
    with database.reading() as session:
        assert "marker" not in str(session.get_one(Run, run["id"]).spec)


def test_the_vm_of_a_deleted_user_is_given_to_nobody_else(
    api: Api, database: Database, background: Host
) -> None:
    api.fleet()
    bob = Api(api.client, issue(database, "bob", ProjectRole.USER))
    bob.run("true", name="theirs")
    theirs = bob.until("theirs", "done")
    api.ask("/api/users/delete", {"users": ["bob"]})

    api.run("true", name="mine")
    mine = api.until("mine", "done", "failed")

    assert mine["status"] == "done"
    assert instance_of(theirs) != instance_of(mine)


def test_one_broken_run_does_not_hold_up_the_others(
    api: Api, background: Host, database: Database
) -> None:
    background.end()
    api.fleet(nodes="0..2")
    api.run("true", name="broken", priority=9)
    api.run("true", name="good")
    with database.writing() as session:
        row = session.scalars(select(RunJob).where(RunJob.name == "broken-0-0")).one()
        row.spec = {}

    host = begin(background.vms)
    try:
        assert api.until("good", "done", "failed")["status"] == "done"
    finally:
        host.end()


def test_a_broken_row_of_a_running_job_is_told_once(
    api: Api, background: Host, database: Database, caplog: pytest.LogCaptureFixture
) -> None:
    api.fleet(nodes="0..2")
    broken = api.run("true", name="broken")
    api.until("broken", "done")
    background.end()
    with database.writing() as session:
        row = session.scalars(select(RunJob).where(RunJob.name == "broken-0-0")).one()
        row.spec, row.status = {}, "running"
        session.get_one(Run, broken["id"]).status = "running"
    caplog.clear()

    host = begin(background.vms)
    try:
        api.run("true", name="good")
        assert api.until("good", "done", "failed")["status"] == "done"
    finally:
        host.end()
    told = [each.getMessage() for each in caplog.records if each.levelname == "ERROR"]
    assert f"tend_run {broken['id']} failed and will be tried again" in told
    assert len(told) == len(set(told))


def test_a_vm_that_is_not_removed_at_once_is_removed_later(
    api: Api, background: Host, monkeypatch: pytest.MonkeyPatch
) -> None:
    refusals = [Unavailable("the VM is busy")]
    remove = background.vms.remove

    def reluctant(vm_id: str) -> None:
        if refusals:
            raise refusals.pop()
        remove(vm_id)

    monkeypatch.setattr(Vms, "remove", lambda _, vm_id: reluctant(vm_id))
    api.fleet(nodes=1)

    def states() -> list[str]:
        return [each["status"] for each in api.ask("fleets/get", {"name": "default"})["instances"]]

    until(lambda: states() == ["idle"], seconds=20, what="the instance")
    api.ask("fleets/delete", {"names": ["default"]})

    until(lambda: api.ask("fleets/list", {}) == [], seconds=20, what="the end of the fleet")
