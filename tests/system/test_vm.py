"""A real VM from the image built here: it boots, runs its app, proves itself, survives, and goes away.

One VM is shared by the tests of this file and they run in order: each boot under emulation costs 20 s and more.
"""

from __future__ import annotations

import hashlib
import json
import os
import signal
import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
import requests
from click.testing import CliRunner

from attest import eventlog, policy, verify
from attest.errors import NotGenuine
from cli.up import check_evidence, sample_compose
from cli.verify import verify as verify_command
from core.errors import Upstream
from tests.common.service import RunningService
from tests.common.waiting import free_port, until
from vmm import channel

BOOT_S = 180.0


@dataclass
class Deployed:
    """The shared VM."""

    service: RunningService
    vm_id: str
    app: str
    agent: str
    ssh_port: int

    @property
    def folder(self) -> Path:
        """Its work directory on the host."""
        return self.service.data_dir / "vm" / self.vm_id

    @property
    def pid(self) -> int:
        """The pid of its QEMU, from the runner's record."""
        return int(json.loads((self.folder / "process.json").read_text())["pid"])

    def evidence(self, nonce: str) -> dict[str, Any]:
        """What the app in the VM says of itself over a nonce."""

        def answer() -> requests.Response | None:
            try:
                page = requests.get(f"{self.app}/json", params={"nonce": nonce}, timeout=20)
            except requests.RequestException:
                return None
            return page if page.status_code == 200 else None

        said: dict[str, Any] = until(answer, seconds=60, what="the app's answer").json()  # type: ignore[union-attr]
        return said


@pytest.fixture(scope="module")
def service(
    image_dir: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningService]:
    data_dir = Path(f"/tmp/cm-{os.getpid()}-vm")
    own_root = (
        f'[attestation]\nroot_ca = "{data_dir}/tee/tee-root-ca.pem"\n'
        f'collateral = "{data_dir}/tee/tee-collateral.json"'
    )
    running = RunningService(data_dir, image_dir[0], top=own_root)
    running.start()
    yield running
    running.end()


@pytest.fixture(scope="module")
def vm(service: RunningService, image_dir: tuple[Path, str]) -> Deployed:
    app, agent, ssh = free_port(), free_port(), free_port()
    made = service.call(
        "prpc/CreateVm",
        name="system-test",
        image=image_dir[1],
        compose_file=json.dumps(sample_compose()),
        vcpu=2,
        memory=2048,
        disk_size=2,
        ports=[
            {"protocol": "tcp", "host_port": app, "vm_port": 80},
            {"protocol": "tcp", "host_port": agent, "vm_port": 8090},
            {"protocol": "tcp", "host_port": ssh, "vm_port": 22},
        ],
    )
    urls = f"http://127.0.0.1:{app}", f"http://127.0.0.1:{agent}"
    deployed = Deployed(service, made["id"], *urls, ssh)
    service.wait_for(deployed.vm_id, within_s=BOOT_S, boot_progress="done")
    return deployed


def test_the_app_in_the_vm_answers_and_its_evidence_verifies(vm: Deployed) -> None:
    said = vm.evidence("a-fresh-nonce")

    proven = check_evidence(said, "a-fresh-nonce", vm.service.data_dir / "tee")
    assert proven == {"tcb_status": "UpToDate", "root": "simulated"}
    info = vm.service.info(vm.vm_id)
    assert said["app_id"] == info["app_id"]
    assert said["instance_id"] == info["instance_id"]
    assert info["simulated_tee"] == "dstack-tdx"


def test_a_vm_that_is_no_runs_takes_no_job_and_has_no_ssh_server(vm: Deployed) -> None:
    for call in ("SubmitJob", "StopJob", "ReleaseJob"):
        with pytest.raises(Upstream, match=f"unknown method: {call}"):
            channel.ask(vm.folder, call, {"id": "x", "command": ["true"]})

    with socket.create_connection(("127.0.0.1", vm.ssh_port), timeout=20) as caller:
        try:
            said = caller.recv(64)
        except ConnectionResetError:
            said = b""
    assert said == b""


def test_the_verifier_of_its_host_says_that_the_vm_is_valid(vm: Deployed) -> None:
    answer = requests.post(f"{vm.service.base}/verify", json=vm.evidence("n"), timeout=20)

    assert answer.status_code == 200
    told = answer.json()
    assert told["is_valid"], told["reason"]
    details, image = told["details"], vm.service.call("prpc/ListImages")["images"][0]
    assert (details["root"], details["os_image_hash_verified"]) == ("simulated", True)
    assert (details["os_image_version"], details["os_image_is_dev"]) == (image["version"], False)
    assert details["boot_info"]["appId"] == vm.service.info(vm.vm_id)["app_id"]


def test_another_verifier_refuses_the_vm(vm: Deployed, tmp_path: Path) -> None:
    request = tmp_path / "request.json"
    request.write_text(json.dumps(vm.evidence("n")))
    told = CliRunner().invoke(verify_command, [str(request)])

    assert told.exit_code == 1
    assert "trusted root" in json.loads(told.output)["reason"]


def test_simulated_evidence_is_refused_under_the_real_root(vm: Deployed) -> None:
    said = vm.evidence("n")
    collateral = (vm.service.data_dir / "tee" / "tee-collateral.json").read_text()

    with pytest.raises(NotGenuine):
        verify.verify_tdx(bytes.fromhex(said["quote"]), collateral, int(time.time()))


def test_the_measured_events_name_the_app_that_runs(vm: Deployed) -> None:
    events = eventlog.from_json(vm.evidence("n")["event_log"])

    policy.check_runtime_events(events)
    measured = {event.event: event.event_payload for event in events if event.imr == 3}
    compose = vm.service.info(vm.vm_id)["configuration"]["compose_file"]
    assert measured["compose-hash"] == hashlib.sha256(compose.encode()).digest()
    names = [event.event for event in events if event.imr == 3]
    assert names[:4] == ["system-preparing", "app-id", "compose-hash", "instance-id"]
    assert names[-1] == "system-ready"


def test_guest_calls_are_relayed(vm: Deployed) -> None:
    service = vm.service

    guest = service.call("guest/Info", id=vm.vm_id)
    system = service.call("guest/SysInfo", id=vm.vm_id)
    network = service.call("guest/NetworkInfo", id=vm.vm_id)
    containers = service.call("guest/ListContainers", id=vm.vm_id)["containers"]

    assert guest["app_id"] == service.info(vm.vm_id)["app_id"]
    assert "BEGIN CERTIFICATE" in guest["app_cert"]
    assert system["num_cpus"] == 2
    assert 1.5e9 < system["total_memory"] < 2.2e9
    assert "10.0.2.2" in [each["address"] for each in network["gateways"]]
    assert [each["state"] for each in containers] == ["running"]
    assert containers[0]["image"] == "localhost/casemate-hello:1"


def test_the_public_port_of_the_agent_gives_no_key(vm: Deployed) -> None:
    version = requests.get(f"{vm.agent}/prpc/Version", timeout=20)
    key = requests.get(f"{vm.agent}/prpc/GetKey?path=x", timeout=20)

    assert version.status_code == 200
    assert key.status_code == 404
    assert "key" not in key.json()


def test_the_serial_log_tells_each_step_of_the_boot(vm: Deployed) -> None:
    serial = vm.service.serial(vm.vm_id)

    assert "===== boot @" in serial
    assert "casemate: root file system verified" in serial
    assert "BEGIN PRIVATE KEY" not in serial


def test_a_killed_worker_and_background_process_are_replaced(vm: Deployed) -> None:
    pid, before = vm.pid, vm.service.children()

    for child in before:
        child.kill()

    until(
        lambda: (
            len({c.pid for c in vm.service.children()} - {c.pid for c in before}) == len(before)
        ),
        what="new children",
    )
    until(_working(vm), what="guest calls after the kill")
    assert vm.pid == pid
    assert vm.service.info(vm.vm_id)["status"] == "running"


@pytest.mark.parametrize("everything", [False, True], ids=["master", "everything but QEMU"])
def test_the_vm_outlives_kill_9_of_the_service(vm: Deployed, everything: bool) -> None:
    pid = vm.pid

    vm.service.kill(everything=everything)
    took = vm.service.start()

    assert vm.pid == pid
    assert psutil.Process(pid).is_running()
    assert vm.service.info(vm.vm_id)["status"] == "running"
    assert vm.service.serial(vm.vm_id)
    until(_working(vm), what="guest calls after the restart")
    assert took < 20  # two or three on a machine with nothing else to do


def _working(vm: Deployed) -> Any:
    def answers() -> bool:
        try:
            reply = vm.service.request("POST", "/guest/SysInfo", json={"id": vm.vm_id})
        except requests.RequestException:
            return False
        return reply.status_code == 200

    return answers


def test_kill_9_of_qemu_is_seen_soon_with_its_reason(vm: Deployed) -> None:
    killed_ms = time.time_ns() // 1_000_000
    os.kill(vm.pid, signal.SIGKILL)

    # The service's own clock counts: asking it over HTTP takes time too.
    info = vm.service.wait_for(vm.vm_id, within_s=30, status="exited")

    event = info["events"][-1]
    assert event["event"] == "vmm.exit"
    # A second where disk and processor have nothing else to do.
    assert event["timestamp"] - killed_ms < 3000, event
    assert "SIGKILL" in event["body"]
    assert "not running" in _refusal(vm, "guest/Info")


def _refusal(vm: Deployed, path: str) -> str:
    answer = vm.service.request("POST", f"/{path}", json={"id": vm.vm_id})
    assert answer.status_code == 400
    return str(answer.json()["message"])


def test_a_shut_down_vm_stops_by_itself(vm: Deployed) -> None:
    vm.service.call("prpc/StartVm", id=vm.vm_id)
    vm.service.wait_for(vm.vm_id, within_s=BOOT_S, boot_progress="done")

    vm.service.call("prpc/ShutdownVm", id=vm.vm_id)

    info = vm.service.wait_for(vm.vm_id, within_s=60, status="stopped")
    assert info["shutdown_progress"] == "powering off"
    assert "exit code 0" in info["events"][-1]["body"]


def test_a_stopped_and_removed_vm_leaves_nothing(vm: Deployed) -> None:
    vm.service.call("prpc/StartVm", id=vm.vm_id)
    process = psutil.Process(vm.pid)
    port = int(vm.app.rpartition(":")[2])

    vm.service.call("prpc/StopVm", id=vm.vm_id)

    assert not process.is_running()
    assert vm.service.info(vm.vm_id)["status"] == "stopped"
    vm.service.call("prpc/RemoveVm", id=vm.vm_id)
    until(
        lambda: not vm.service.call("prpc/GetInfo", id=vm.vm_id)["found"],
        seconds=20,
        what="the removal",
    )
    assert not vm.folder.exists()
    assert vm.service.qemus() == []
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
