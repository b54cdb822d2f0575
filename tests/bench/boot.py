"""From CreateVm to the agent's first answer and to the sample app's, with the real image."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import requests

from cli.up import sample_compose
from tests.bench.context import Bench
from tests.bench.report import Line
from tests.common.service import RunningService, free_port, until

KEYS = ("boot",)
# guest-image.md section 2: quiet machine, 2 vCPU, TCG, from the start of QEMU.
AGENT_S = 8.1
APP_S = 17.0
PATIENCE_S = 300.0


def measure(bench: Bench) -> Iterator[Line]:
    """`boots` boots of the sample app's VM, one after the other."""
    images, image = bench.real_image
    service = RunningService(bench.scratch / "boot", images)
    agents, apps = [], []
    try:
        service.start()
        for _ in range(bench.boots):
            agent_s, app_s = _boot(bench, service, image)
            agents.append(agent_s)
            apps.append(app_s)
    finally:
        service.end()
    for name, samples, recorded in (
        ("CreateVm -> the agent answers", agents, AGENT_S),
        ("CreateVm -> the compose app answers", apps, APP_S),
    ):
        yield Line(
            key="boot",
            name=name,
            unit="s",
            samples=samples,
            peer="on record, quiet, from QEMU's start",
            peer_samples=[recorded],
        )


def _boot(bench: Bench, service: RunningService, image: str) -> tuple[float, float]:
    port = free_port()
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

    def agent_answers() -> bool:
        # Waits inside the service, up to 5 s a call: the question lies in the port when the agent opens it.
        return service.request("POST", "/guest/Info", json={"id": vm_id}).status_code == 200

    def app_answers() -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{port}/", timeout=20).status_code == 200
        except (requests.ConnectionError, requests.Timeout):
            return False

    try:
        until(agent_answers, within_s=PATIENCE_S, what="the agent's answer")
        agent_s = time.monotonic() - began
        until(app_answers, within_s=PATIENCE_S, what="the app's answer")
        app_s = time.monotonic() - began
    finally:
        for event in service.info(vm_id)["events"]:
            bench.say(f"{event['event']}: {event['body'][:120]}")
        service.call("prpc/RemoveVm", id=vm_id)
    until(
        lambda: not service.call("prpc/GetInfo", id=vm_id)["found"],
        within_s=60,
        what="the removal",
    )
    return agent_s, app_s
