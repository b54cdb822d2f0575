"""Many callers at once against the real gunicorn and the stand-in for QEMU (quality: races of the VM manager)."""

from __future__ import annotations

import contextlib
import random
import shutil
import socket
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import requests

from core.proc import run
from tests.common import rows
from tests.common.promises import breaches, is_settled, look
from tests.common.service import RunningService
from tests.common.waiting import free_port, until

CROWD = 50
THREADS = 16
WORKERS = 2
BUSY_S = 20.0


@pytest.fixture(scope="module")
def running(fake_qemu: Path) -> Iterator[RunningService]:
    folder = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp"))
    rows.image(folder / "images")
    service = RunningService(
        folder / "data",
        folder / "images",
        extra=(
            f'qemu_path = "{fake_qemu}"\naccel = "tcg"\nmax_allocable_vcpu = 20\n'
            f"[server]\nworkers = {WORKERS}\nthreads = {THREADS}\n"
        ),
    )
    service.start()
    yield service
    service.end()
    shutil.rmtree(folder)


@pytest.fixture
def service(running: RunningService) -> Iterator[RunningService]:
    """Without VMs at first; whatever a test did, the promises hold when it is over."""
    yield running
    until(lambda: is_settled(running), seconds=30)
    left = set(look(running))
    assert breaches(running, set(), set()) == []
    for vm_id in left:
        running.request("POST", "/prpc/RemoveVm", json={"id": vm_id})
    until(lambda: not look(running), seconds=60)
    assert running.qemus() == []
    assert "database is locked" not in running.log.read_text()


def at_once(calls: list[Callable[[], requests.Response]]) -> list[requests.Response]:
    """The answers to calls that are all on their way before the first is answered."""
    gate = threading.Barrier(len(calls))

    def call(each: Callable[[], requests.Response]) -> requests.Response:
        gate.wait()
        return each()

    with ThreadPoolExecutor(len(calls)) as pool:
        return list(pool.map(call, calls))


def post(service: RunningService, verb: str, **message: Any) -> Callable[[], requests.Response]:
    return lambda: service.request("POST", f"/prpc/{verb}", json=message)


def test_of_fifty_that_want_one_host_port_one_gets_it(service: RunningService) -> None:
    port = free_port()
    wanted = rows.request(ports=[rows.port(port)], stopped=True)

    answers = at_once([post(service, "CreateVm", **wanted) for _ in range(CROWD)])

    refusals = [answer for answer in answers if answer.status_code != 200]
    assert len(refusals) == CROWD - 1
    assert {answer.status_code for answer in refusals} == {400}
    assert all(str(port) in answer.json()["message"] for answer in refusals)
    assert [vm.ports for vm in look(service).values()] == [(port,)]


def test_fifty_starts_of_one_vm_make_one_process(service: RunningService) -> None:
    vm_id = service.call("prpc/CreateVm", **rows.request(stopped=True))["id"]

    answers = at_once([post(service, "StartVm", id=vm_id) for _ in range(CROWD)])

    assert {answer.status_code for answer in answers} == {200}
    assert len(service.qemus()) == 1
    assert look(service)[vm_id].events == ("vmm.start",)


def test_a_hundred_creations_at_the_limit_never_exceed_it(service: RunningService) -> None:
    most: list[int] = []
    over = threading.Event()

    def watch() -> None:
        while not over.wait(0.1):
            most.append(len(service.qemus()))

    watching = threading.Thread(target=watch)
    watching.start()
    answers = at_once([post(service, "CreateVm", **rows.request(vcpu=4)) for _ in range(100)])
    over.set()
    watching.join()

    made = [answer for answer in answers if answer.status_code == 200]
    refused = [answer for answer in answers if answer.status_code != 200]
    assert len(made) == 5
    assert max(most, default=0) <= 5
    assert {answer.status_code for answer in refused} == {400}
    assert all("vcpu: this host allows 20" in answer.json()["message"] for answer in refused)
    assert len(look(service)) == 5


def test_starts_stops_and_removals_in_any_order_leave_whole_vms(service: RunningService) -> None:
    dice = random.Random(20)
    ids = [
        service.call("prpc/CreateVm", **rows.request(ports=[rows.port(free_port())], stopped=True))[
            "id"
        ]
        for _ in range(10)
    ]
    removed: set[str] = set()
    codes: dict[int, int] = {}
    ends = time.monotonic() + BUSY_S

    # A slow machine goes on until it has seen enough.
    while time.monotonic() < ends or codes.get(200, 0) <= 50:
        vm_id = dice.choice(ids)
        verbs = dice.choices(("StartVm", "StopVm", "ShutdownVm", "UpdateVm"), k=3)
        if dice.random() < 0.03:
            verbs[0] = "RemoveVm"
        answers = at_once([post(service, verb, id=vm_id, user_config="x") for verb in verbs])
        for verb, answer in zip(verbs, answers, strict=True):
            codes[answer.status_code] = codes.get(answer.status_code, 0) + 1
            if verb == "RemoveVm" and answer.status_code == 200:
                removed.add(vm_id)
                ids = [each for each in ids if each != vm_id] or [
                    service.call("prpc/CreateVm", **rows.request(stopped=True))["id"]
                ]

    until(lambda: is_settled(service) and not removed & look(service).keys(), seconds=30)
    assert breaches(service, set(ids) | removed, removed) == []
    # 503: a guest that ends just then cannot be asked to.
    assert set(codes) <= {200, 400, 404, 503}, codes


def test_an_update_while_starting_is_in_or_out_and_the_row_says_which(
    service: RunningService,
) -> None:
    texts = [f'{{"docker_compose_file": "services: {{}}", "n": {n}}}' for n in range(12)]
    vm_id = service.call("prpc/CreateVm", **rows.request(stopped=True))["id"]

    for text in texts:
        answers = at_once(
            [
                post(service, "StartVm", id=vm_id),
                post(service, "UpgradeApp", id=vm_id, compose_file=text),
            ]
        )
        assert {answer.status_code for answer in answers} == {200}
        seen = look(service)[vm_id]
        assert seen.compose == text
        # The disk that the guest has; the folder beside it is what the next start will give.
        share = service.data_dir / "vm" / vm_id / "shared.img"
        booted = run(["mtype", "-i", share, "::app-compose.json"]).stdout.decode()
        before = texts[texts.index(text) - 1] if text != texts[0] else rows.COMPOSE
        last = [event for event in seen.events if event in ("vmm.start", "vmm.update")][-1]
        # The order of the events is the order of what happened.
        assert booted == (text if last == "vmm.start" else before)
        service.call("prpc/StopVm", id=vm_id)


def follower(service: RunningService, vm_id: str) -> tuple[int, socket.socket]:
    """A stream by hand, so that it can be left without a word; its status code."""
    connection = socket.create_connection(("127.0.0.1", service.port), timeout=20)
    head = f"GET /logs?id={vm_id}&follow=1 HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {service.token}\r\n\r\n"
    connection.sendall(head.encode())
    return int(connection.recv(65536).split()[1]), connection


def descriptors(service: RunningService) -> int:
    return sum(child.num_fds() for child in service.children())


def test_a_hundred_followers_leave_the_service_responsive(service: RunningService) -> None:
    vm_id = service.call("prpc/CreateVm", **rows.request())["id"]
    service.call("prpc/Version")
    before = descriptors(service)

    began = time.monotonic()
    with ThreadPoolExecutor(20) as pool:
        streams = list(pool.map(lambda _: follower(service, vm_id), range(100)))
    answered_s = time.monotonic() - began
    codes = [code for code, _ in streams]
    times = [timed(lambda: service.call("prpc/Version")) for _ in range(100)]

    assert set(codes) == {200, 503}
    assert WORKERS <= codes.count(200) <= WORKERS * THREADS // 2
    assert answered_s < 10
    assert sorted(times)[98] < 2, sorted(times)[-5:]
    # Readers that leave without a word give their places back within seconds, and others may come.
    for _, connection in streams:
        connection.close()
    until(lambda: follows(service, vm_id), what="a place for a new follower")
    service.call("prpc/RemoveVm", id=vm_id)
    until(lambda: not look(service), seconds=30)
    until(lambda: descriptors(service) <= before + 2 * WORKERS, what="the end of all descriptors")


def timed(call: Callable[[], object]) -> float:
    began = time.monotonic()
    call()
    return time.monotonic() - began


def follows(service: RunningService, vm_id: str) -> bool:
    code, connection = follower(service, vm_id)
    connection.close()
    return code == 200


def test_a_stream_ends_with_its_vm(service: RunningService) -> None:
    vm_id = service.call("prpc/CreateVm", **rows.request())["id"]
    code, connection = follower(service, vm_id)
    assert code == 200

    service.call("prpc/RemoveVm", id=vm_id)

    with connection, contextlib.suppress(TimeoutError):
        last = b""
        while data := connection.recv(65536):
            last = (last + data)[-16:]
            if last.endswith(b"0\r\n\r\n"):
                break
        assert last.endswith(b"0\r\n\r\n")
        return
    pytest.fail("the stream did not end within 20 s of the removal")


def test_a_service_with_a_hundred_running_vms_adopts_them_all(
    fake_qemu: Path, data_dir: Path
) -> None:
    rows.image(data_dir / "images")
    service = RunningService(
        data_dir / "data",
        data_dir / "images",
        extra=f'qemu_path = "{fake_qemu}"\naccel = "tcg"\nmax_allocable_vcpu = 200\n',
    )
    service.start()
    with ThreadPoolExecutor(4) as pool:
        answers = list(
            pool.map(lambda _: service.call("prpc/CreateVm", **rows.request()), range(100))
        )
    before = look(service)
    service.kill(everything=False)

    began = time.monotonic()
    service.start()
    until(lambda: statuses(service) == {"running"}, seconds=30)
    took_s = time.monotonic() - began
    after = look(service)
    service.end()

    assert len(answers) == len(before) == 100
    assert after == before
    # Five on a machine with nothing else to do.
    assert took_s < 15
    print(f"100 VMs adopted {took_s:.2f} s after the start of the service")


def statuses(service: RunningService) -> set[str]:
    return {vm["status"] for vm in service.call("prpc/Status", brief=True)["vms"]}
