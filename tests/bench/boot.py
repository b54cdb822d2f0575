"""From CreateVm to the agent's first answer and to the sample app's, with the real image."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Iterator
from dataclasses import dataclass

import psutil
import requests

from cli.up import sample_compose
from tests.bench.context import Bench
from tests.bench.report import Line
from tests.common.service import RunningService
from tests.common.waiting import free_port, until

# guest-image.md section 2: quiet machine, 2 vCPU, TCG, from the start of QEMU.
AGENT_S = 8.1
APP_S = 17.0
PATIENCE_S = 300.0


def measure(bench: Bench) -> Iterator[Line]:
    """`boots` boots of the sample app's VM, one after the other."""
    images, image = bench.real_image
    service = RunningService(bench.scratch / "boot", images)
    boots = []
    try:
        service.start()
        for _ in range(bench.boots):
            boots.append(_boot(bench, service, image))
    finally:
        service.end()
    for name, moments, recorded in (
        ("CreateVm -> the agent answers", [boot[0] for boot in boots], AGENT_S),
        ("CreateVm -> the compose app answers", [boot[1] for boot in boots], APP_S),
    ):
        # What QEMU computed until then tells a slow guest from a busy machine.
        computed = statistics.median(moment.cpu_s for moment in moments)
        yield Line(
            key="boot",
            name=name,
            unit="s",
            samples=[moment.wall_s for moment in moments],
            peer="on record, quiet, from QEMU's start",
            peer_samples=[recorded],
            note=f"QEMU computed {computed:.1f} s",
        )


@dataclass(frozen=True)
class Moment:
    """Seconds since the request, and seconds of processor time that QEMU had used by then."""

    wall_s: float
    cpu_s: float


def _boot(bench: Bench, service: RunningService, image: str) -> tuple[Moment, Moment]:
    port = free_port()
    began_ms = time.time_ns() // 1_000_000
    began = time.monotonic()
    made = service.call(
        "prpc/CreateVm",
        name="bench",
        image=image,
        compose_file=json.dumps(sample_compose()),
        vcpu=2,
        memory=2048,
        disk_size=2,
        ports=[{"protocol": "tcp", "host_port": port, "vm_port": 80}],
    )
    vm_id = made["id"]
    record = service.data_dir / "vm" / vm_id / "process.json"
    qemu = psutil.Process(json.loads(record.read_text())["pid"])

    def now() -> Moment:
        return Moment(time.monotonic() - began, sum(qemu.cpu_times()[:2]))

    def agent_answers() -> bool:
        # Waits inside the service, up to 5 s a call: the question lies in the port when the agent opens it.
        answer = service.request("POST", "/guest/Info", json={"id": vm_id})
        if answer.status_code == 400:
            raise AssertionError(f"{answer.text}\n{service.serial(vm_id)}")
        return answer.status_code == 200

    def app_answers() -> bool:
        # Short: a first packet that comes while the container's network is built is lost for many seconds.
        try:
            return requests.get(f"http://127.0.0.1:{port}/", timeout=3).status_code == 200
        except (requests.ConnectionError, requests.Timeout):
            return False

    try:
        until(agent_answers, seconds=PATIENCE_S, what="the agent's answer")
        agent = now()
        until(app_answers, seconds=PATIENCE_S, what="the app's answer")
        app = now()
    finally:
        for event in service.info(vm_id)["events"]:
            at_s = (event["timestamp"] - began_ms) / 1000
            bench.say(f"{at_s:6.1f} s  {event['event']}: {event['body'][:60]}")
        for line in service.serial(vm_id).splitlines():
            if line.startswith("casemate: "):
                bench.say(f"guest's clock: {line.removeprefix('casemate: ')}")
        service.call("prpc/RemoveVm", id=vm_id)
    until(
        lambda: not service.call("prpc/GetInfo", id=vm_id)["found"],
        seconds=60,
        what="the removal",
    )
    return agent, app
