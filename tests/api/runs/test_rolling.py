"""Services that are updated while they serve: real scheduler and proxy, replicas that are local web servers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from subprocess import Popen
from typing import Any

import pytest
from sqlalchemy import delete, event

from core.errors import Conflict
from models.port import PortLease
from runs import probes, rolling
from runs.executor import JobOrder, Listener, Stage
from runs.scheduler import Scheduler
from tests.api.runs.conftest import Api, Host
from tests.common.fake_executor import FakeExecutor
from tests.common.waiting import free_port, until
from vmm.service import Vms

URL = "/proxy/services/main/web/"
# Answers every path with a word, after it was told to be well.
SERVER = """
import http.server, os, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        well = self.path != "/health" or os.path.exists(os.environ["WELL"])
        self.send_response(200 if well else 503)
        self.end_headers()
        self.wfile.write(os.environ["WORD"].encode())
    do_HEAD = do_POST = do_GET
    def log_message(self, *args): pass
http.server.ThreadingHTTPServer(("127.0.0.1", int(os.environ["HOST_PORT"])), Handler).serve_forever()
"""
SERVE = f"exec python3 -c '{SERVER}'"


@dataclass
class ServingExecutor(FakeExecutor):
    """Leases the port of a job as the real executor does; the job listens on that port of this host itself."""

    vms: Any = field(default=None)

    def submit(self, vm_id: str, order: JobOrder) -> None:
        if order.submission_id in self.processes:
            # An earlier process of the service has begun it.
            self.follow(order.submission_id, self._see_end, order.submission_id)
            return
        if order.ports:
            port = free_port()
            order = replace(order, env={**order.env, "HOST_PORT": str(port)})
            lease = PortLease(
                vm_id=vm_id, position=9, protocol="tcp", host_address="127.0.0.1",
                host_port=port, vm_port=order.ports[0], own=True,
            )  # fmt: skip
            with self.vms.database.writing() as session:
                session.execute(_leases(vm_id))
                session.add(lease)
        super().submit(vm_id, order)

    def _see_end(self, submission_id: str) -> None:
        code = self.processes[submission_id].wait()
        self.tell(submission_id, Stage.EXITED, abs(code))

    def release(self, vm_id: str, submission_id: str) -> None:
        super().release(vm_id, submission_id)
        with self.vms.database.writing() as session:
            session.execute(_leases(vm_id))


def _leases(vm_id: str) -> Any:
    return delete(PortLease).where(PortLease.vm_id == vm_id, PortLease.position == 9)


def begin(vms: Vms, **running: Popen[bytes]) -> Host:
    """A background process, and what an earlier one has left in the VMs."""

    def make(_: Vms, listener: Listener) -> ServingExecutor:
        return ServingExecutor(listener, vms=vms, processes=running)

    scheduler = Scheduler(vms, make)
    scheduler.start()
    executor = scheduler.executor
    assert isinstance(executor, ServingExecutor)
    return Host(vms, scheduler, executor)


@pytest.fixture
def serving(vms: Vms, sweeper: None, tmp_path: Any) -> Iterator[Host]:
    """A host whose services can be asked."""
    host = begin(vms)
    yield host
    host.end()


@pytest.fixture
def well(tmp_path: Any) -> Any:
    """The file that says that the service is well."""
    found = tmp_path / "well"
    found.touch()
    return found


def wanted(well: Any, word: str = "one", **more: Any) -> dict[str, Any]:
    """The spec of a service that says a word."""
    configuration = {
        "type": "service",
        "port": 8000,
        "commands": [SERVE],
        "env": {"WORD": word, "WELL": str(well)},
        "resources": {"cpu": "1..", "memory": "1GB.."},
        "stop_duration": 5,
        **more,
    }
    return {"run_name": "web", "configuration": configuration}


PROBED = {"probes": [{"type": "http", "url": "/health", "interval": 1}]}


def apply(api: Api, spec: dict[str, Any], *, force: bool = False) -> Any:
    """What a client does: asks for the plan, and applies it."""
    plan = api.ask("runs/get_plan", {"run_spec": spec})
    current = plan["current_resource"]
    body = {"plan": {"run_spec": spec, "current_resource": current}, "force": force}
    return api.ask("runs/apply", body)


def say(api: Api) -> tuple[int, str]:
    """What the service answers."""
    with api.client.get(URL, headers={"Authorization": f"Bearer {api.token}"}) as told:
        return told.status_code, told.get_data(as_text=True)


def says(api: Api, word: str) -> None:
    until(lambda: say(api) == (200, word), seconds=30, what=f"{word} from the service")


def replicas(api: Api) -> dict[int, str]:
    """The states of the replicas by number."""
    jobs = api.get("web")["jobs"]
    return {job["job_spec"]["replica_num"]: job["job_submissions"][-1]["status"] for job in jobs}


def settled(api: Api, *running: int) -> Any:
    """The run once these replicas run and all others are over."""

    def found() -> bool:
        states = replicas(api)
        others = {state for num, state in states.items() if num not in running}
        return all(states.get(num) == "running" for num in running) and others <= {"terminated"}

    until(found, seconds=30, what=f"only replicas {running}")
    return api.get("web")


def renewed(api: Api, count: int) -> Any:
    """The run once so many replicas of its deployment run and all others are over; their numbers are used again."""

    def found() -> Any:
        run = api.get("web")
        last = [job["job_submissions"][-1] for job in run["jobs"]]
        running = [s["deployment_num"] for s in last if s["status"] == "running"]
        over = [s for s in last if s["status"] == "terminated"]
        is_done = running == [run["deployment_num"]] * count and len(over) + count == len(last)
        return run if is_done else None

    return until(found, seconds=60, what=f"{count} new replicas alone")


@contextmanager
def asked_all_the_time(api: Api) -> Iterator[list[tuple[int, str]]]:
    """What the service answers to somebody who never stops asking."""
    told: list[tuple[int, str]] = []
    over = threading.Event()
    mine = Api(api.client.application.test_client(), api.token)

    def ask() -> None:
        while not over.wait(0.02):
            told.append(say(mine))

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield told
    finally:
        over.set()
        thread.join()


def test_an_update_replaces_the_replicas_and_nobody_notices(
    api: Api, serving: Host, well: Any
) -> None:
    api.fleet(nodes="0..3")
    first = apply(api, wanted(well, replicas=2))
    says(api, "one")
    settled(api, 0, 1)

    with asked_all_the_time(api) as told:
        plan = api.ask("runs/get_plan", {"run_spec": wanted(well, "two", replicas=2)})
        changed = apply(api, wanted(well, "two", replicas=2))
        run = renewed(api, 2)
        asked = len(told)
        until(lambda: len(told) > asked + 5, seconds=30, what="answers of the new replicas")
        # The first of these may have been on its way before.
        assert {word for _, word in told[asked + 1 :]} == {"two"}

    assert plan["action"] == "update"
    assert (changed["id"], changed["deployment_num"]) == (first["id"], 1)
    assert {status for status, _ in told} == {200}
    assert run["status"] == run["status_message"] == "running"
    last = [job["job_submissions"][-1] for job in run["jobs"]]
    assert {each["deployment_num"] for each in last if each["status"] == "running"} == {1}
    gone = [s for job in run["jobs"] for s in job["job_submissions"] if s["status"] != "running"]
    assert {each["termination_reason"] for each in gone} == {"scaled_down"}
    assert "Run updated. Deployment: 1. Changed fields: env" in api.events(target_runs=[run["id"]])


def test_a_priority_replaces_nothing(api: Api, serving: Host, well: Any) -> None:
    api.fleet(nodes="0..2")
    apply(api, wanted(well))
    says(api, "one")
    before = api.get("web")["jobs"]

    apply(api, wanted(well, priority=7))

    run = until(
        lambda: (run := api.get("web"))["latest_job_submission"]["deployment_num"] == 1 and run,
        seconds=20,
        what="the job counted to the new deployment",
    )
    assert [job["job_submissions"][-1]["id"] for job in run["jobs"]] == [
        job["job_submissions"][-1]["id"] for job in before
    ]
    assert run["run_spec"]["configuration"]["priority"] == 7


def test_replicas_grow_and_shrink_and_keep_who_is_there(api: Api, serving: Host, well: Any) -> None:
    api.fleet(nodes="0..3")
    apply(api, wanted(well))
    says(api, "one")
    (order,) = serving.executor.orders

    apply(api, wanted(well, replicas=3))
    settled(api, 0, 1, 2)
    apply(api, wanted(well, replicas=1))
    run = settled(api, 0)

    assert run["jobs"][0]["job_submissions"][-1]["id"] == order
    assert len(serving.executor.orders) == 3


def test_a_replica_is_sent_requests_when_its_probes_pass(
    api: Api, serving: Host, well: Any
) -> None:
    well.unlink()
    api.fleet()
    apply(api, wanted(well, **PROBED))
    api.until("web", "running")

    def streak() -> Any:
        probes = api.get("web")["latest_job_submission"]["probes"]
        return [each["success_streak"] for each in probes]

    until(lambda: streak() == [0], seconds=20, what="a probe that failed")
    assert say(api)[0] == 503
    well.touch()
    says(api, "one")
    assert streak()[0] >= 1
    well.unlink()
    until(lambda: say(api)[0] == 503, seconds=20, what="a service that is not well")
    assert "Service replica ready to receive requests" in api.events(
        within_runs=[api.get("web")["id"]]
    )


def test_a_probe_that_passes_again_writes_nothing(
    api: Api, serving: Host, well: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    passed, succeeds = [], probes.succeeds
    monkeypatch.setattr(probes, "succeeds", lambda *of: passed.append(succeeds(*of)) or passed[-1])
    api.fleet()
    apply(api, wanted(well, **PROBED))
    says(api, "one")
    noted: list[str] = []

    event.listen(
        serving.vms.database.engine, "before_cursor_execute", lambda *of: noted.append(of[2])
    )
    asked = len(passed)
    until(lambda: len(passed) > asked + 2, seconds=20, what="two more answers")

    assert all(passed[asked:])
    assert not [each for each in noted if "streaks=" in each]


def test_the_old_replica_stays_until_the_new_one_is_well(
    api: Api, serving: Host, well: Any, tmp_path: Any
) -> None:
    api.fleet(nodes="0..2")
    apply(api, wanted(well, **PROBED))
    says(api, "one")
    later = tmp_path / "later"

    apply(api, wanted(later, "two", **PROBED))
    until(lambda: replicas(api).get(1) == "running", seconds=20, what="the new replica")

    assert {say(api) for _ in range(5)} == {(200, "one")}
    assert replicas(api)[0] == "running"
    later.touch()
    says(api, "two")
    settled(api, 1)


def test_a_new_replica_that_fails_leaves_the_old_one_alone(
    api: Api, serving: Host, well: Any
) -> None:
    api.fleet(nodes="0..2")
    apply(api, wanted(well))
    says(api, "one")

    apply(api, wanted(well, commands=["exit 3"], retry=None))
    run = until(
        lambda: (run := api.get("web"))["status_message"] == "running, update stopped" and run,
        seconds=20,
        what="an update that was stopped",
    )

    assert run["status"] == "running"
    assert {say(api) for _ in range(5)} == {(200, "one")}
    failed = run["jobs"][1]["job_submissions"]
    assert [(each["status"], each["exit_status"]) for each in failed] == [("failed", 3)]
    told = [each for each in api.events(target_runs=[run["id"]]) if "Update stopped" in each]
    why = "web-0-1 ended before it was ready; the other replicas stay as they are"
    assert told == [f"Update stopped. Deployment: 1. {why}"]

    apply(api, wanted(well, "three"))
    says(api, "three")
    assert settled(api, 1)["status_message"] == "running"


def test_without_room_the_update_waits_and_the_old_one_serves(
    api: Api, serving: Host, well: Any
) -> None:
    api.fleet(nodes="0..1")
    apply(api, wanted(well))
    says(api, "one")

    apply(api, wanted(well, "two"))
    waiting = "running, update waits for room"
    until(lambda: api.get("web")["status_message"] == waiting, seconds=20, what=waiting)
    assert say(api) == (200, "one")
    assert replicas(api) == {0: "running", 1: "submitted"}
    fleet = api.ask("fleets/get", {"name": "default"})
    spec = fleet["spec"]
    spec["configuration"]["nodes"] = {"min": 0, "max": 2}
    api.ask("fleets/apply", {"plan": {"spec": spec, "current_resource": fleet}, "force": True})

    says(api, "two")
    run = settled(api, 1)
    told = [each for each in api.events(within_runs=[run["id"]]) if "waits for room" in each]
    assert told == ["Job waits for room: all instances of the fleets are busy"]


def test_a_host_without_room_is_asked_again(
    api: Api, serving: Host, well: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rolling, "NO_ROOM_US", 200_000)
    refusing, create = threading.Event(), Vms.create

    def full(self: Vms, *args: Any, **kwargs: Any) -> str:
        if refusing.is_set():
            raise Conflict("the host is full")
        return create(self, *args, **kwargs)

    monkeypatch.setattr(Vms, "create", full)
    api.fleet(nodes="0..2")
    apply(api, wanted(well))
    says(api, "one")
    refusing.set()

    apply(api, wanted(well, "two"))
    until(
        lambda: len(replicas(api)) > 1 and len(api.get("web")["jobs"][1]["job_submissions"]) > 1,
        seconds=20,
        what="another try",
    )
    assert api.get("web")["status"] == "running"
    assert say(api) == (200, "one")
    refusing.clear()

    says(api, "two")
    settled(api, 1)


def test_a_service_that_still_boots_is_updated_on_the_same_vm(
    api: Api, serving: Host, well: Any
) -> None:
    serving.executor.boots = False
    api.fleet(nodes="0..1")
    apply(api, wanted(well))
    (vm_id,) = until(lambda: list(serving.executor.waiting), seconds=20, what="a VM that boots")

    apply(api, wanted(well, "two"))
    until(lambda: replicas(api).get(0) == "terminated", seconds=20, what="the end of the old one")
    serving.executor.waiting.clear()
    serving.executor.boot(vm_id)

    says(api, "two")
    assert len(api.ask("fleets/get", {"name": "default"})["instances"]) == 1


def test_a_new_scheduler_goes_on_in_the_middle(
    api: Api, vms: Vms, sweeper: None, well: Any, tmp_path: Any
) -> None:
    first = begin(vms)
    later = tmp_path / "later"
    api.fleet(nodes="0..2")
    apply(api, wanted(well, **PROBED))
    says(api, "one")
    apply(api, wanted(later, "two", **PROBED))
    until(lambda: replicas(api).get(1) == "running", seconds=20, what="the new replica")
    left, first.executor.processes = first.executor.processes, {}
    first.end()

    second = begin(vms, **left)
    try:
        later.touch()
        says(api, "two")
        run = settled(api, 1)
        assert run["latest_job_submission"]["termination_reason"] == "scaled_down"
    finally:
        second.end()


def test_an_outrun_update_is_refused(api: Api, serving: Host, well: Any) -> None:
    api.fleet()
    run = apply(api, wanted(well))
    apply(api, wanted(well, "two"))

    stale = {"plan": {"run_spec": wanted(well, "three"), "current_resource": run}, "force": False}

    assert "has been changed" in api.refusal("runs/apply", stale)[1]
    assert api.ask("runs/apply", {**stale, "force": True})["deployment_num"] == 2


def test_what_no_service_takes_over_is_refused(api: Api, serving: Host, well: Any) -> None:
    api.fleet()
    run = apply(api, wanted(well))
    other = wanted(well, auth=False)

    plan = api.ask("runs/get_plan", {"run_spec": other})
    refused = {"plan": {"run_spec": other, "current_resource": run}, "force": True}

    assert plan["action"] == "create"
    assert api.refusal("runs/apply", refused)[1].startswith("Cannot override active run")
