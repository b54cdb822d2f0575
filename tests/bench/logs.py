"""P10 and P11: reading a large serial log and following a live one, beside `tail`."""

from __future__ import annotations

import contextlib
import json
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import requests

from tests.bench.context import Bench, memory_mb
from tests.bench.http import Load
from tests.bench.report import Line, Promise
from tests.bench.vms import COMPOSE
from tests.common.service import RunningService

LOG_BYTES = 1024**3
LINE = b"[   12.345678] \x1b[1;32mOK\x1b[0m a line of a guest's console, of middling length\r\n"
WRITES = 20
FOLLOWERS = 50
IDLE_S = 10.0


def measure(bench: Bench) -> Iterator[Line]:
    """One stopped VM whose console log is 1 GiB; then an empty log that grows line by line."""
    images, image = bench.idle_image
    service = RunningService(bench.scratch / "logs", images, extra="log = {max_bytes = 0}")
    try:
        service.start()
        vm_id = _stopped_vm(service, image)
        log = service.data_dir / "vm" / vm_id / "serial.log"
        _fill(log)
        for lines in (100, 10_000):
            yield from _tail(bench, service, vm_id, log, lines)
        log.write_bytes(b"")
        yield _follow(bench, service, vm_id, log)
        yield from _crowd(bench, service, vm_id)
    finally:
        service.end()


def _stopped_vm(service: RunningService, image: str) -> str:
    made = service.call(
        "prpc/CreateVm",
        name="bench",
        image=image,
        compose_file=COMPOSE,
        vcpu=1,
        memory=256,
        disk_size=1,
        stopped=True,
    )
    vm_id: str = made["id"]
    (service.data_dir / "vm" / vm_id).mkdir(mode=0o700, exist_ok=True)
    return vm_id


def _fill(log: Path) -> None:
    block = LINE * (16 * 1024**2 // len(LINE))
    with open(log, "wb") as file:
        while file.tell() < LOG_BYTES:
            file.write(block)


# P10 ---------------------------------------------------------------------------------------------


def _tail(
    bench: Bench, service: RunningService, vm_id: str, log: Path, lines: int
) -> Iterator[Line]:
    session = requests.Session()
    session.headers["Authorization"] = f"Bearer {service.token}"
    url = f"{service.base}/logs?id={vm_id}&lines={lines}"
    taken: dict[str, list[float]] = {"tail": [], "raw": [], "stripped": []}
    before = memory_mb(service, peak=False)
    for number in range(bench.rounds + 1):
        sample = {
            "tail": _first_of_tail(log, lines),
            "raw": _first_of_http(session, f"{url}&ansi=true"),
            "stripped": _first_of_http(session, f"{url}&ansi=false"),
        }
        if number:  # the first round warms up
            for name, value in sample.items():
                taken[name].append(value * 1000)
    grown = memory_mb(service, peak=True) - before
    for name, factor in (("raw", 1.5), ("stripped", 2.0)):
        yield Line(
            key="P10",
            name=f"/logs?lines={lines} of 1 GiB, first byte, ansi={str(name == 'raw').lower()}",
            unit="ms",
            samples=taken[name],
            promise=Promise(factor=factor),
            peer=f"tail -n {lines}",
            peer_samples=taken["tail"],
        )
    yield Line(
        key="P10",
        name=f"memory that a worker grew by, lines={lines}",
        unit="MB",
        samples=[max(0.0, grown)],
        promise=Promise(plus=10),
    )


def _first_of_tail(log: Path, lines: int) -> float:
    began = time.perf_counter()
    with subprocess.Popen(["tail", "-n", str(lines), log], stdout=subprocess.PIPE) as tail:
        assert tail.stdout is not None
        assert tail.stdout.read(1)
        took = time.perf_counter() - began
        tail.stdout.read()
    return took


def _first_of_http(session: requests.Session, url: str) -> float:
    began = time.perf_counter()
    with session.get(url, stream=True, timeout=30) as answer:
        assert answer.status_code == 200
        pieces = answer.iter_content(chunk_size=None)
        assert next(pieces)
        took = time.perf_counter() - began
        for _ in pieces:
            pass
    return took


# P11 ---------------------------------------------------------------------------------------------


def _follow(bench: Bench, service: RunningService, vm_id: str, log: Path) -> Line:
    ours, peers = [], []
    with (
        _following(service, vm_id) as answer,
        subprocess.Popen(["tail", "-n", "0", "-f", log], stdout=subprocess.PIPE) as tail,
    ):
        try:
            assert tail.stdout is not None
            received = answer.iter_lines(chunk_size=None)
            time.sleep(0.5)  # `tail` says nothing when it is ready
            for number in range(WRITES):
                text = f"line {number}\n".encode()
                began = time.perf_counter()
                with open(log, "ab", buffering=0) as file:
                    file.write(text)
                assert tail.stdout.readline() == text
                peers.append((time.perf_counter() - began) * 1000)
                line = next(received)
                assert line + b"\n" == text, (line, text)
                ours.append((time.perf_counter() - began) * 1000)
        finally:
            tail.kill()
    bench.say(f"followed {WRITES} lines, the slowest after {max(ours):.0f} ms")
    return Line(
        key="P11",
        name="/logs?follow=true: line written -> line received",
        unit="ms",
        samples=ours,
        promise=Promise(plus=250),
        peer="tail -f",
        peer_samples=peers,
    )


@contextlib.contextmanager
def _following(service: RunningService, vm_id: str) -> Iterator[requests.Response]:
    deadline = time.monotonic() + 30
    while True:
        answer = service.request(
            "GET", f"/logs?id={vm_id}&follow=true&lines=0&ansi=true", stream=True
        )
        if answer.status_code == 200:
            break
        # Connections fall unevenly on the workers: one whose places are taken says so, and asks to try again.
        assert answer.status_code == 503 and time.monotonic() < deadline, answer.text
        answer.close()
    with answer:
        yield answer


def _crowd(bench: Bench, service: RunningService, vm_id: str) -> Iterator[Line]:
    headers = {"Authorization": f"Bearer {service.token}", "Content-Type": "application/json"}
    path = "/prpc/GetInfo"
    body = json.dumps({"id": vm_id})
    load = Load(bench.scratch, service.port, path, "POST", headers, body)
    load.run(1)
    alone = [load.run(1) for _ in range(bench.rounds)]
    with contextlib.ExitStack() as stack:
        for _ in range(FOLLOWERS):
            stack.enter_context(_following(service, vm_id))
        share = _share(service)
        beside = [load.run(1) for _ in range(bench.rounds)]
    bench.say(f"{FOLLOWERS} followers: {share:.1f} % of a core when idle")
    yield Line(
        key="P11",
        name=f"GetInfo beside {FOLLOWERS} followers",
        unit="req/s",
        samples=beside,
        promise=Promise(factor=0.8, at_least=True),
        peer="GetInfo alone",
        peer_samples=alone,
    )
    yield Line(
        key="P11",
        name=f"processor of {FOLLOWERS} idle followers",
        unit="%",
        samples=[share],
        promise=Promise(plus=10),
    )


def _share(service: RunningService) -> float:
    processes = service.children()
    before = sum(sum(each.cpu_times()[:2]) for each in processes)
    time.sleep(IDLE_S)  # what is measured is that nothing happens
    return (sum(sum(each.cpu_times()[:2]) for each in processes) - before) / IDLE_S * 100
