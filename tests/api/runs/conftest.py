"""A caller of the runs interface, and a scheduler whose jobs are processes of this machine."""

from __future__ import annotations

import functools
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from flask.testing import FlaskClient
from sqlalchemy import select
from werkzeug.test import TestResponse

from core.config import Config
from core.errors import CasemateError
from models.vm import Vm
from runs.scheduler import Scheduler
from tests.common.described import Described
from tests.common.fake_executor import FakeExecutor
from tests.common.waiting import until
from vmm.lifecycle import Wished
from vmm.service import Vms


@functools.cache
def _described(text: str) -> Described:
    return Described(json.loads(text))


def described(client: FlaskClient) -> Described:
    """The document of the interface, which is the same in all tests."""
    made = client.application.extensions["documents"]["runs"].make()
    return _described(json.dumps(made, sort_keys=True))


@dataclass
class Api:
    """Calls of one user, as curl makes them."""

    client: FlaskClient
    token: str
    project: str = "main"

    def post(self, path: str, body: Any = None, **headers: str) -> TestResponse:
        """One call; a path that does not begin with a slash is one of the project's."""
        whole = path if path.startswith("/") else f"/api/project/{self.project}/{path}"
        given = {"Authorization": f"Bearer {self.token}", **headers}
        answer = self.client.post(whole, json=body, headers=given)
        described(self.client).check(answer, body)
        return answer

    def ask(self, path: str, body: Any = None) -> Any:
        """What a call answers that must succeed."""
        answer = self.post(path, body)
        assert answer.status_code == 200, answer.get_data(as_text=True)
        return answer.get_json()

    def refusal(self, path: str, body: Any = None) -> tuple[str, str]:
        """Code and sentence of a call that must be a mistake."""
        answer = self.post(path, body)
        assert answer.status_code == 400, answer.get_data(as_text=True)
        (row,) = answer.get_json()["detail"]
        return row["code"], row["msg"]

    def fleet(self, name: str = "default", nodes: Any = "0..1", **more: Any) -> Any:
        """Applies a fleet whose instances any size fits."""
        resources = {"cpu": "1..", "memory": "1GB..", "gpu": 0, "disk": None}
        wanted = {"type": "fleet", "name": name, "nodes": nodes, "resources": resources, **more}
        plan = {"spec": {"configuration": wanted, "profile": {}}}
        return self.ask("fleets/apply", {"plan": plan, "force": False})

    def run(self, *commands: str, name: str | None = None, **more: Any) -> Any:
        """Submits a task that any size fits."""
        resources = {"cpu": "1..", "memory": "1GB.."}
        wanted = {"type": "task", "commands": list(commands), "resources": resources, **more}
        spec = {"run_name": name, "configuration": wanted}
        return self.ask("runs/apply", {"plan": {"run_spec": spec}, "force": False})

    def get(self, name: str) -> Any:
        """A run by name."""
        return self.ask("runs/get", {"run_name": name})

    def until(self, name: str, *statuses: str) -> Any:
        """A run as soon as it has one of some states."""

        def found() -> Any:
            run = self.get(name)
            return run if run["status"] in statuses else None

        return until(found, seconds=20, what=f"{name} being {statuses}")

    def events(self, **query: Any) -> list[str]:
        """What happened, the oldest first."""
        told = self.ask("/api/events/list", query)
        return [each["message"] for each in reversed(told)]


@pytest.fixture
def api(client: FlaskClient, config: Config) -> Api:
    """The administrator."""
    return Api(client, (config.data_dir / "admin-token").read_text().strip())


@dataclass
class Host:
    """The background process of a host: the scheduler, and what deletes VMs."""

    vms: Vms
    scheduler: Scheduler
    executor: FakeExecutor

    def end(self) -> None:
        """Ends the scheduler as a restart does."""
        self.scheduler.stop()
        self.scheduler.thread.join(60)
        # What it was about to make is made before the folder goes.
        self.scheduler.pool.shutdown(wait=True)
        self.executor.settle()


def begin(vms: Vms, *, boots: bool = True) -> Host:
    """A new background process."""
    scheduler = Scheduler(vms, lambda _, listener: FakeExecutor(listener, boots))
    scheduler.start()
    executor = scheduler.executor
    assert isinstance(executor, FakeExecutor)
    return Host(vms, scheduler, executor)


@pytest.fixture
def sweeper(vms: Vms) -> Iterator[None]:
    """Deletes the VMs that are marked for it, as the background process does."""
    over = threading.Event()

    def sweep() -> None:
        while not over.wait(0.05):
            with vms.database.reading() as session:
                gone = session.scalars(select(Vm.id).where(Vm.wished == Wished.REMOVED)).all()
            for vm_id in gone:
                try:
                    vms.reconciler.one(vm_id)
                except CasemateError:
                    continue

    thread = threading.Thread(target=sweep)
    thread.start()
    yield
    over.set()
    thread.join()


@pytest.fixture
def background(vms: Vms, sweeper: None) -> Iterator[Host]:
    """A host whose VMs boot at once."""
    host = begin(vms)
    yield host
    host.end()
