"""P3 and P4: a page of Status with 1 to 5,000 VM records, in the process and over HTTP, and all of them."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path
from typing import Any

import requests
from flask.testing import FlaskClient
from marshmallow import Schema, fields
from sqlalchemy import select
from sqlalchemy.orm import undefer

import migrations
from app import create_app
from core import config as configuration
from models.base import Database
from models.port import PortLease
from models.vm import Vm, VmEvent
from tests.bench.context import Bench, memory_mb, seconds
from tests.bench.report import Line, Promise
from tests.common.service import RunningService
from tests.common.waiting import until
from vmm.host import Host

SIZES = (1, 100, 1000, 5000)
# A full page; and what fills one where there is one record alone.
PAGES = (10, 1)
# Two workers and the background process.
PROCESSES = 3
# A sample is the mean of so many requests, so that one look of the scheduler away does not make it.
REQUESTS = 20
# 2 KB, as performance.md section 2.3 has it.
COMPOSE = json.dumps({"manifest_version": 2, "docker_compose_file": "x" * 1950})


def measure(bench: Bench) -> Iterator[Line]:
    """All sizes in turn, `rounds` times: first with Flask's client, then with two services."""
    clients = {size: _client(bench.scratch / f"rows-{size}", size) for size in SIZES}
    for client in clients.values():
        for _ in range(10):
            _page(client)
    taken: dict[tuple[int, int], list[float]] = defaultdict(list)
    for _ in range(bench.rounds):
        for length, (size, client) in product(PAGES, clients.items()):
            taken[length, size].append(_mean(lambda: _page(client, length)))  # noqa: B023 - used at once
    for size in SIZES:
        each = taken[10, size]
        bench.say(f"{size} records: {min(each):.2f}-{max(each):.2f} ms in the process")
    yield from _beside_one("in the service", taken)
    most = SIZES[-1]
    yield Line(
        key="P3",
        name=f"Status, page of 10 of {most:,}, absolute",
        unit="ms",
        samples=taken[10, most],
        promise=Promise(plus=5),
    )
    for size in SIZES[1:-1]:
        yield Line(
            key="P3",
            name=f"Status, page of 10 of {most:,}, beside other sizes",
            unit="ms",
            samples=taken[10, most],
            promise=Promise(factor=1.3),
            peer=f"with {size:,} records",
            peer_samples=taken[10, size],
        )
    yield Line(
        key="P3",
        name="files, sockets and processes that page touches",
        unit="",
        samples=[_touches(lambda: _page(clients[most]))],
        promise=Promise(plus=0),
    )
    yield from _beside_one("over HTTP", _over_http(bench))
    yield from _all_of_them(bench)


def _beside_one(where: str, taken: dict[tuple[int, int], list[float]]) -> Iterator[Line]:
    """With one record a page of 10 has one entry: beside it stand the full page, and a page as long as its own."""
    for length in PAGES:
        yield Line(
            key="P3",
            name=f"Status, page of {length} of {SIZES[-1]:,}, {where}",
            unit="ms",
            samples=taken[length, SIZES[-1]],
            promise=Promise(factor=1.3),
            peer="with 1 record (a page of 1)",
            peer_samples=taken[length, 1],
        )


def _over_http(bench: Bench) -> dict[tuple[int, int], list[float]]:
    taken: dict[tuple[int, int], list[float]] = defaultdict(list)
    services = {
        size: RunningService(bench.scratch / f"rows-{size}", bench.scratch)
        for size in (1, SIZES[-1])
    }
    try:
        sessions = {}
        for size, service in services.items():
            service.start()
            session = sessions[size] = requests.Session()
            session.headers["Authorization"] = f"Bearer {service.token}"
        asks = {
            (length, size): _asking(sessions[size], f"{service.base}/prpc/Status", length, size)
            for length, (size, service) in product(PAGES, services.items())
        }
        for ask in asks.values():
            _mean(ask)
        for _ in range(bench.rounds):
            for which, ask in asks.items():
                taken[which].append(_mean(ask))
    finally:
        for service in services.values():
            service.stop()  # P4 has the rows yet to read
    return taken


def _all_of_them(bench: Bench) -> Iterator[Line]:
    """P4: every record in one answer, beside the floor: the rows, a flat schema and JSON without a service."""
    service = RunningService(bench.scratch / f"rows-{SIZES[-1]}", bench.scratch)
    floors: dict[bool, list[float]] = {False: [], True: []}
    taken: dict[bool, list[float]] = {False: [], True: []}
    try:
        service.start()
        database = Database(service.data_dir / "casemate.db")
        session = requests.Session()
        session.headers["Authorization"] = f"Bearer {service.token}"
        # The one that comes last must not be taken for growth.
        until(lambda: len(service.children()) == PROCESSES, what="all its processes")
        before = memory_mb(service, peak=False)
        for number in range(bench.rounds + 1):
            for brief in (False, True):
                floor = seconds(lambda: _floor(database, brief)) * 1000  # noqa: B023 - used at once
                own = seconds(lambda: _all(session, service, brief)) * 1000  # noqa: B023 - used at once
                if number:
                    floors[brief].append(floor)
                    taken[brief].append(own)
        grown = memory_mb(service, peak=True) - before
        database.engine.dispose()
    finally:
        service.end()
    for brief in (False, True):
        yield Line(
            key="P4",
            name=f"Status, all {SIZES[-1]:,}, {'brief' if brief else 'full'}",
            unit="ms",
            samples=taken[brief],
            promise=Promise(factor=1.5),
            peer="rows, flat schema, JSON",
            peer_samples=floors[brief],
        )
    yield Line(
        key="P4",
        name="memory that the workers grew by",
        unit="MB",
        samples=[max(0.0, grown)],
        promise=Promise(plus=80),
    )


class _Flat(Schema):
    """A row as it lies in the table, without what lists leave out."""

    id = fields.Str()
    name = fields.Str()
    app_id = fields.Str()
    image = fields.Str()
    vcpu = fields.Int()
    memory_mb = fields.Int()
    disk_gb = fields.Int()
    wished = fields.Str()
    observed = fields.Str()
    created_ms = fields.Int()
    started_ms = fields.Int()
    stopped_ms = fields.Int()
    options = fields.Raw()
    ports = fields.List(fields.Nested(Schema.from_dict({"host_port": fields.Int()})))
    events = fields.List(
        fields.Nested(Schema.from_dict({"event": fields.Str(), "body": fields.Str()}))
    )


class _FlatWithCompose(_Flat):
    compose_file = fields.Str()
    user_config = fields.Str()


def _floor(database: Database, brief: bool) -> None:
    rows = select(Vm).order_by(Vm.created_ms)
    if not brief:
        rows = rows.options(undefer(Vm.compose_file), undefer(Vm.user_config))
    schema = _Flat(many=True) if brief else _FlatWithCompose(many=True)
    with database.reading() as session:
        assert len(json.dumps(schema.dump(session.scalars(rows).all()))) > SIZES[-1]


def _all(session: requests.Session, service: RunningService, brief: bool) -> None:
    url = f"{service.base}/prpc/Status"
    answer = session.post(url, json={"brief": brief}, timeout=120)
    assert answer.status_code == 200 and len(answer.content) > SIZES[-1] * 100


def _asking(session: requests.Session, url: str, length: int, size: int) -> Callable[[], None]:
    def ask() -> None:
        answer = session.post(url, json={"page_size": length}, timeout=30)
        assert answer.status_code == 200 and answer.json()["total"] == size

    return ask


def _mean(ask: Callable[[], object]) -> float:
    return seconds(lambda: [ask() for _ in range(REQUESTS)]) * 1000 / REQUESTS


def _client(data_dir: Path, size: int) -> FlaskClient:
    toml = data_dir.with_suffix(".toml")
    data_dir.mkdir(mode=0o700)
    toml.write_text(f'data_dir = "{data_dir}"\n[cvm]\nsimulate = true\naccel = "tcg"\n')
    config = configuration.load(toml)
    migrations.upgrade(config.database)
    with Database(config.database).writing() as session:
        session.add_all(row(number) for number in range(size))
    app = create_app(config, Host.discover(config))
    return app.test_client()


def _page(client: FlaskClient, length: int = PAGES[0]) -> dict[str, Any]:
    answer = client.post("/prpc/Status", json={"page_size": length})
    assert answer.status_code == 200, answer.text
    page: dict[str, Any] = json.loads(answer.data)
    assert len(page["vms"]) == min(length, page["total"])
    return page


def row(number: int) -> Vm:
    created_ms = 1_700_000_000_000 + number
    happened = ("vmm.start", "boot.progress", "boot.progress", "vmm.stop")
    return Vm(
        id=f"00000000-0000-4000-8000-{number:012d}",
        name=f"vm-{number}",
        app_id=f"{number:040x}",
        image="casemate-0.5.11",
        image_version="0.5.11",
        vcpu=2,
        memory_mb=2048,
        disk_gb=10,
        no_tee=False,
        simulated_tee="dstack-tdx",
        hugepages=False,
        pin_numa=False,
        options={"kms_urls": [], "gateway_urls": [], "networks": []},
        compose_file=COMPOSE,
        encrypted_env=b"",
        user_config="",
        wished="stopped",
        observed="absent",
        created_ms=created_ms,
        started_ms=created_ms + 100,
        stopped_ms=created_ms + 60_000,
        ports=[
            PortLease(
                position=0,
                protocol="tcp",
                host_address="127.0.0.1",
                host_port=20_000 + number,
                vm_port=80,
            )
        ],
        events=[
            VmEvent(event=event, body="pid 1234", timestamp_ms=created_ms + at)
            for at, event in enumerate(happened)
        ],
    )


def _touches(work: Callable[[], object]) -> int:
    """How many files, folders, sockets and processes a call opens, by Python's own audit events."""
    seen: list[str] = []
    prefixes = ("open", "socket.", "subprocess.", "os.listdir", "os.scandir", "os.posix_spawn")

    def note(event: str, arguments: tuple[Any, ...]) -> None:
        if counting and event.startswith(prefixes):
            seen.append(event)

    counting = True
    sys.addaudithook(note)  # stays for the life of the process, hence the switch
    work()
    counting = False
    return len(seen)
