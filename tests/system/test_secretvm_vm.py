"""A real VM made through the SecretVM interface with curl: it boots, serves, proves itself, stops, starts, goes.

One VM is shared by the tests of this file and they run in order: each boot under emulation costs 20 s and more.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from attest import quote
from tests.common.service import RunningService
from tests.common.waiting import until
from tests.unit.secretvm.test_document import tar

BOOT_S = 300.0
SAMPLE = Path(__file__).parents[2] / "image/hello/docker-compose.yaml"
# The app listens where a file beside its compose file says.
COMPOSE = SAMPLE.read_text().replace('"80:80"', '"80:8081"') + "    env_file: settings/port.env\n"
DOCKER_FILES = {"settings/port.env": b"PORT=8081\n"}


@dataclass
class Shared:
    """The VM that all tests of this file are about."""

    service: RunningService
    id: str

    def call(self, method: str, path: str = "") -> requests.Response:
        """A call on it that must succeed."""
        answer = self.service.request(method, f"/api/vm/{self.id}{path}")
        assert answer.status_code == 200, answer.text
        return answer

    def details(self) -> dict[str, Any]:
        told: dict[str, Any] = self.call("GET").json()
        return told

    def is_in_state(self, state: str) -> bool:
        told = self.details()
        assert told["status"] != "error", (told["error_message"], self.service.serial(self.id))
        return bool(told["state"] == state)

    def wait_for(self, state: str) -> None:
        until(lambda: self.is_in_state(state), seconds=BOOT_S, what=f"the state {state}")

    @property
    def page(self) -> str:
        """The address of the app's published port on this host."""
        (port,) = (each for each in self.details()["network_ports"] if each["to"] == 80)
        return f"http://{port['host_address']}:{port['from']}"

    def answers(self) -> requests.Response | None:
        try:
            page = requests.get(f"{self.page}/json", params={"nonce": "n"}, timeout=20)
        except requests.RequestException:
            return None
        return page if page.status_code == 200 else None


@pytest.fixture(scope="module")
def vm(image_dir: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Shared]:
    folder = tmp_path_factory.mktemp("given")
    (folder / "compose.yaml").write_text(COMPOSE)
    (folder / "files.tar").write_bytes(tar(*DOCKER_FILES.items()))
    service = RunningService(Path(f"/tmp/cm-{os.getpid()}-svm"), image_dir[0])
    service.start()
    told = subprocess.run(
        [
            "curl", "-sS", "--fail-with-body", "-X", "POST", f"{service.base}/api/vm/create",
            "-H", f"Authorization: Bearer {service.token}",
            "-F", "name=my-vm", "-F", "vmTypeId=small", "-F", f"dockercompose=@{folder}/compose.yaml",
            "-F", f"dockerfiles=@{folder}/files.tar",
        ],
        capture_output=True, text=True, check=False, timeout=120,
    )  # fmt: skip
    try:
        assert told.returncode == 0, (told.stdout, told.stderr)
        yield Shared(service, json.loads(told.stdout)["id"])
    finally:
        service.end()


def test_it_runs_once_its_guest_has_given_a_quote(vm: Shared) -> None:
    assert vm.details()["status"] == "running"
    assert vm.details()["docker_file"] == COMPOSE

    vm.wait_for("running")

    parsed = quote.parse(bytes.fromhex(vm.call("GET", "/cpu").text))
    assert parsed is not None


def test_its_app_reads_its_docker_files_and_answers_on_the_host_port_that_was_found_for_it(
    vm: Shared,
) -> None:
    said = until(vm.answers, seconds=BOOT_S, what="the app's answer")

    assert said is not None
    assert len(said.json()["app_id"]) == 40


def test_the_logs_of_its_containers_are_told(vm: Shared) -> None:
    def asked() -> str:
        text = vm.call("GET", "/docker_logs?service=hello").text
        return text if "GET /json" in text else ""

    logs = until(asked, seconds=60, what="the request of before in the log")

    assert vm.call("GET", "/docker_logs?service=nothing").text == ""
    assert logs.splitlines()[-1] in vm.call("GET", "/docker_logs").text


def test_it_stops_by_itself_when_asked_and_starts_again(vm: Shared) -> None:
    assert vm.call("POST", "/stop").json()["details"]["vm_status"] in ("stopping", "stopped")
    vm.wait_for("stopped")
    assert vm.service.info(vm.id)["shutdown_progress"] == "powering off"

    assert vm.call("POST", "/start").json()["vm"]["vm_status"] == "running"
    assert vm.details()["state"] == "starting"
    vm.wait_for("running")


def test_it_is_gone_with_all_it_had(vm: Shared) -> None:
    folder = vm.service.data_dir / "vm" / vm.id
    assert folder.is_dir()

    vm.call("DELETE", "/terminate")

    assert vm.service.request("GET", f"/api/vm/{vm.id}").status_code == 404
    until(lambda: not folder.exists(), seconds=60, what="the end of its folder")
    assert not vm.service.qemus()
