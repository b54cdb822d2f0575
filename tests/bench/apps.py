"""The apps interface: pages of 1,000 apps, and the attestations of an app of 20 VMs, whose guests are slow or silent.

The guests are stood for by a channel that answers late, so that what is measured is the asking alone.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from flask.testing import FlaskClient
from sqlalchemy import select

import migrations
from accounts import directory
from app import create_app
from apps.attestations import GUEST_S
from core import config as configuration
from core.errors import UpstreamTimeout
from models.account import Project
from models.base import Database
from models.vm import Vm
from tests.bench.context import Bench, seconds
from tests.bench.lists import row
from tests.bench.report import Line, Promise
from vmm import channel
from vmm.host import Host

APPS, PAGE_SIZE, GUESTS = 1000, 20, 20
ANSWER_S = 0.5
# What asking 20 guests may add to the slowest of them, on two cores.
MORE_S = 0.5
# A sample is the mean of so many requests.
REQUESTS = 5


def measure(bench: Bench) -> Iterator[Line]:
    """First and last page in turn, `rounds` times; then one app with guests that answer late or never."""
    yield _pages(bench, Caller(bench.scratch / "apps-1000", APPS, 1))
    guests, stand_in = Caller(bench.scratch / "apps-20", 1, GUESTS), Channel()
    for name, late_s, limit_s in (
        (f"attestations of {GUESTS} guests that answer after {ANSWER_S} s", ANSWER_S, ANSWER_S),
        (f"attestations of {GUESTS} guests that never answer", 60.0, GUEST_S),
    ):
        stand_in.late_s = late_s
        with mock.patch.object(channel, "ask", stand_in.ask):
            samples = [seconds(guests.attestations) for _ in range(2)]
        yield Line(
            key="apps",
            name=name,
            unit="s",
            samples=samples,
            promise=Promise(plus=limit_s + MORE_S),
        )


def _pages(bench: Bench, caller: Caller) -> Line:
    first, last = 1, APPS // PAGE_SIZE
    taken: dict[int, list[float]] = {first: [], last: []}
    for number in range(bench.rounds + 1):
        for page, samples in taken.items():
            spent = seconds(lambda: [caller.page(page) for _ in range(REQUESTS)])  # noqa: B023 - used at once
            if number:
                samples.append(spent * 1000 / REQUESTS)
    return Line(
        key="apps",
        name=f"the last page of {APPS:,} apps",
        unit="ms",
        samples=taken[last],
        promise=Promise(factor=1.3),
        peer="the first page",
        peer_samples=taken[first],
    )


@dataclass
class Channel:
    """Stands for the channels to all guests."""

    late_s: float = 0.0

    def ask(self, *_: object, whole_s: float, **__: object) -> dict[str, Any]:
        """A guest's answer with nothing in it, too late for who does not wait so long."""
        time.sleep(min(self.late_s, whole_s))
        if self.late_s > whole_s:
            raise UpstreamTimeout("the guest did not answer")
        return {}


class Caller:
    """A user with some apps of so many VMs each, all of them running."""

    def __init__(self, data_dir: Path, apps: int, vms: int) -> None:
        self.apps, self.vms = apps, vms
        config = _config(data_dir)
        with Database(config.database).writing() as session:
            user = directory.add_user(session, "bench")
            project = session.scalars(select(Project).where(Project.name == "bench")).one()
            self.key = directory.add_token(session, user, name="", made_by="bench")[1]
            session.add_all(_vms(project.id, apps, vms))
        app = create_app(config, Host.discover(config))
        self.client: FlaskClient = app.test_client()

    def get(self, path: str) -> Any:
        """What a call answers with."""
        answer = self.client.get(path, headers={"X-API-Key": self.key})
        assert answer.status_code == 200, answer.text
        return answer.json

    def page(self, number: int) -> None:
        """One page of the list of apps."""
        told = self.get(f"/api/v1/apps?page={number}&page_size={PAGE_SIZE}")
        assert (told["total"], len(told["dstack_apps"])) == (self.apps, PAGE_SIZE)

    def attestations(self) -> None:
        """What all guests of the first app say, or why they do not."""
        told = self.get(f"/api/v1/apps/{0:040x}/attestations")["instances"]
        assert len(told) == self.vms and all(each["error"] for each in told)


def _vms(project_id: str, apps: int, vms: int) -> Iterator[Vm]:
    for number, (app, _) in enumerate(itertools.product(range(apps), range(vms))):
        made = row(number)
        made.app_id, made.project_id = f"{app:040x}", project_id
        made.wished, made.observed = "running", "alive"
        yield made


def _config(data_dir: Path) -> configuration.Config:
    toml = data_dir.with_suffix(".toml")
    data_dir.mkdir(mode=0o700)
    toml.write_text(f'data_dir = "{data_dir}"\n[cvm]\nsimulate = true\naccel = "tcg"\n')
    config = configuration.load(toml)
    migrations.upgrade(config.database)
    return config
