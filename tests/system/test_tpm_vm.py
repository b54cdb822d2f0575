"""A real VM whose keys come from its TPM: they and its disk outlast a restart."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.common.service import RunningService

BOOT_S = 240.0
SCRIPT = r"""
echo again >>/dstack/persistent/boots
key=$(python3 -c '
import hashlib, http.client, socket
agent = http.client.HTTPConnection("agent", timeout=60)
agent.sock = socket.socket(socket.AF_UNIX)
agent.sock.connect("/var/run/dstack.sock")
agent.request("POST", "/GetKey", "{}")
print(hashlib.sha256(agent.getresponse().read()).hexdigest())
')
echo "found: boots $(wc -l </dstack/persistent/boots) key $key" >/dev/console
sync
"""


pytestmark = pytest.mark.timeout(1200)  # two boots, maybe after the image was built


@pytest.fixture
def service(image_dir: tuple[Path, str]) -> Iterator[RunningService]:
    if shutil.which("swtpm") is None:
        pytest.skip("swtpm is not installed")
    running = RunningService(Path(f"/tmp/cm-{os.getpid()}-tpm"), image_dir[0])
    running.start()
    yield running
    running.end()


def found(service: RunningService, vm_id: str) -> tuple[str, str]:
    """How often the app has booted on this disk, and what it says of its key."""
    service.wait_for(vm_id, within_s=BOOT_S, boot_progress="done")
    said = re.findall(r"found: boots (\d+) key (\w+)", service.serial(vm_id))
    count, key = said[-1]
    return count, key


def test_keys_and_disk_of_a_tpm_outlast_a_restart(
    service: RunningService, image_dir: tuple[Path, str]
) -> None:
    compose = {
        "manifest_version": 2,
        "name": "tpm",
        "runner": "bash",
        "bash_script": SCRIPT,
        "key_provider": "tpm",
    }
    made = service.call(
        "prpc/CreateVm",
        name="tpm-test",
        image=image_dir[1],
        compose_file=json.dumps(compose),
        vcpu=2,
        memory=2048,
        disk_size=2,
    )
    first = found(service, made["id"])

    service.call("prpc/StopVm", id=made["id"])
    service.call("prpc/StartVm", id=made["id"])
    second = found(service, made["id"])

    assert (first[0], second[0]) == ("1", "2")
    assert first[1] == second[1]
