"""A real VM on a passt network: its host port leads to the agent inside, and passt goes with the VM."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from cli.up import sample_compose
from tests.common.passt import needs_passt
from tests.common.service import RunningService
from tests.common.waiting import free_port, until
from vmm import process

pytestmark = needs_passt


@pytest.fixture
def service(image_dir: tuple[Path, str]) -> Iterator[RunningService]:
    extra = '[cvm.networking]\nmode = "passt"\n'
    running = RunningService(Path(f"/tmp/cm-{os.getpid()}-passt"), image_dir[0], extra=extra)
    running.start()
    yield running
    running.end()


def test_a_port_leads_through_passt_to_the_agent(
    service: RunningService, image_dir: tuple[Path, str]
) -> None:
    port = free_port()
    vm_id = service.call(
        "prpc/CreateVm",
        name="passt",
        image=image_dir[1],
        compose_file=json.dumps(sample_compose()),
        vcpu=1,
        memory=1024,
        disk_size=2,
        ports=[{"protocol": "tcp", "host_port": port, "vm_port": 8090}],
    )["id"]
    folder = service.data_dir / "vm" / vm_id

    def agent() -> bool:
        try:
            return requests.get(f"http://127.0.0.1:{port}/", timeout=20).status_code == 200
        except requests.RequestException:
            return False

    assert until(agent, seconds=180, what="the agent's answer through passt")
    assert process.find(folder / "passt0") is not None

    service.call("prpc/StopVm", id=vm_id)

    assert process.find(folder / "passt0") is None
    assert not agent()
