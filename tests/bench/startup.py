"""P12 and P17: restart beside 100 running VMs, start-up, and what an idle service costs."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil

from tests.bench.context import Bench, seconds
from tests.bench.peers import Hello
from tests.bench.report import Line, Promise
from tests.bench.vms import COMPOSE
from tests.common.service import RunningService
from tests.common.waiting import until

VMS = 100
# So many of them are asked to shut down and end while the service is away.
ENDED = 3
RESTARTS = 3
IDLE_S = 10.0

_BARE_IMPORT = "import click, requests"


def idle(bench: Bench) -> Iterator[Line]:
    """How soon the command and the service are there, and what the service costs when nobody calls."""
    yield from _command_line(bench)
    yield from _service(bench)


def _command_line(bench: Bench) -> Iterator[Line]:
    casemate = Path(sys.executable).parent / "casemate"
    ours, bare = [], []
    for _ in range(bench.rounds + 1):
        bare.append(seconds(lambda: _run([sys.executable, "-c", _BARE_IMPORT])))
        ours.append(seconds(lambda: _run([os.fspath(casemate), "--help"])))
    yield Line(
        key="P17",
        name="casemate --help",
        unit="s",
        samples=ours[1:],  # the first one fills the disk cache
        promise=Promise(plus=0.4),
        peer=f"python -c '{_BARE_IMPORT}'",
        peer_samples=bare[1:],
    )


def _run(argv: list[str]) -> None:
    subprocess.run(argv, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, check=True)


def _service(bench: Bench) -> Iterator[Line]:
    service = RunningService(bench.scratch / "idle-service", bench.idle_image[0])
    starts, bare = [], []
    try:
        for number in range(RESTARTS + 1):
            hello = Hello()
            bare.append(hello.start())
            hello.end()
            starts.append(service.start())
            if number < RESTARTS:
                service.stop()
        for _ in range(50):
            service.call("prpc/Status")
        memory, share = _cost(service)
        bench.say(f"idle service: {memory:.0f} MB, {share:.2f} % of a core")
    finally:
        service.end()
    yield Line(
        key="P17",
        name="casemate serve, until it answers",
        unit="s",
        samples=starts[1:],  # the first one also makes the database
        promise=Promise(plus=3),
        peer="gunicorn with Flask hello",
        peer_samples=bare[1:],
    )
    yield Line(
        key="P17",
        name="memory of the idle service (PSS: master, 2 workers, background)",
        unit="MB",
        samples=[memory],
        promise=Promise(plus=150),
    )
    yield Line(
        key="P17",
        name=f"processor of the idle service, over {IDLE_S:.0f} s",
        unit="%",
        samples=[share],
        promise=Promise(plus=1),
    )


def _cost(service: RunningService) -> tuple[float, float]:
    """Memory in MB and share of one core in percent of all processes of a service."""
    assert service.process is not None
    processes = [psutil.Process(service.process.pid), *service.children()]
    before = sum(map(_cpu_s, processes))
    time.sleep(IDLE_S)  # what is measured is that nothing happens
    share = (sum(map(_cpu_s, processes)) - before) / IDLE_S * 100
    return sum(_pss_mb(each.pid) for each in processes), share


def _cpu_s(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


def _pss_mb(pid: int) -> float:
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return int(line.split()[1]) / 1024
    raise AssertionError(f"no Pss of {pid}")


def restart(bench: Bench) -> Iterator[Line]:
    """kill -9 of the service, some VMs end, a new service: until Status tells the truth about all."""
    images, image = bench.idle_image
    service = RunningService(
        bench.scratch / "many", images, extra=f"max_allocable_vcpu = {2 * VMS}"
    )
    times = []
    try:
        service.start()
        began = time.monotonic()
        total = VMS + RESTARTS * ENDED
        with ThreadPoolExecutor(4) as pool:
            vms = list(pool.map(lambda number: _create(service, image, number), range(total)))
        bench.say(f"{total} VMs (real QEMUs, halted guests) in {time.monotonic() - began:.0f} s")
        pids = {vm: _pid(service, vm) for vm in vms}
        _, share = _cost(service)
        stopped: set[str] = set()
        for _ in range(RESTARTS):
            ending = [vm for vm in vms if vm not in stopped][:ENDED]
            with ThreadPoolExecutor(ENDED) as pool:
                list(pool.map(lambda vm: service.call("prpc/ShutdownVm", id=vm), ending))
            service.kill(everything=True)
            for vm in ending:
                psutil.Process(pids[vm]).kill()
            stopped.update(ending)
            began = time.monotonic()
            service.start()
            until(
                lambda: _statuses(service) == {vm: _word(vm, stopped) for vm in vms},
                seconds=60,
                what="a true Status",
            )
            times.append(time.monotonic() - began)
            bench.say(f"restart: {times[-1]:.2f} s until Status was right")
        restarted = [vm for vm in vms if vm not in stopped and _pid(service, vm) != pids[vm]]
    finally:
        service.end()
    yield Line(
        key="P12",
        name=f"service killed and started, {VMS} VMs run on, {ENDED} ended: until Status is right",
        unit="s",
        samples=times,
        promise=Promise(plus=5),
    )
    yield Line(
        key="P12",
        name="VMs that were started again by it",
        unit="",
        samples=[len(restarted)],
        promise=Promise(plus=0),
    )
    yield Line(
        key="P12",
        name=f"processor of a service with {VMS} idle VMs",
        unit="%",
        samples=[share],
    )


def _create(service: RunningService, image: str, number: int) -> str:
    made = service.call(
        "prpc/CreateVm",
        name=f"bench-{number}",
        image=image,
        compose_file=COMPOSE,
        vcpu=1,
        memory=256,
        disk_size=1,
    )
    vm_id: str = made["id"]
    return vm_id


def _pid(service: RunningService, vm_id: str) -> int:
    record = service.data_dir / "vm" / vm_id / "process.json"
    pid: int = json.loads(record.read_text())["pid"]
    return pid


def _statuses(service: RunningService) -> dict[str, str]:
    answer = service.call("prpc/Status", brief=True)
    return {vm["id"]: vm["status"] for vm in answer["vms"]}


def _word(vm_id: str, stopped: set[str]) -> str:
    return "stopped" if vm_id in stopped else "running"
