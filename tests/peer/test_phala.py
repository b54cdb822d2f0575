"""The published clients of Phala Cloud, unchanged, on `casemate serve`: both SDKs, and the command line on a real VM."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from image import manifest
from tests.common import rows
from tests.common.kms import RunningKms
from tests.common.service import RunningService
from tests.common.waiting import until
from tests.peer.conftest import HERE, installed

pytestmark = pytest.mark.filterwarnings("ignore:Unverified HTTPS request")

BOOT_S = 300.0
SECRET = "marmalade on toast"
# The bundled container image, so that no registry is asked.
APP = """\
services:
  hello:
    image: localhost/casemate-hello:1
    pull_policy: never
    command: ["python3", "-u", "-c", "import os; print('secret', os.environ['SECRET'], 'version {version}'); import http.server as h; h.test(h.SimpleHTTPRequestHandler, port=8000)"]
    environment:
      - SECRET=${{SECRET}}
    ports:
      - "8000:8000"
"""


@pytest.fixture(scope="module")
def kms(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningKms]:
    running = RunningKms(tmp_path_factory.mktemp("kms"))
    running.start()
    yield running
    running.stop()


@pytest.fixture(scope="module")
def service(fake_qemu: Path, kms: RunningKms) -> Iterator[RunningService]:
    """A service whose VMs are of the stand-in for QEMU."""
    folder = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp"))
    rows.image(folder / "images")
    made = RunningService(
        folder / "data",
        folder / "images",
        top=f'kms_url = "{kms.url}"',
        extra=f'qemu_path = "{fake_qemu}"\naccel = "tcg"\n',
    )
    made.start()
    yield made
    made.end()
    shutil.rmtree(folder)


def run(command: list[Any], folder: Path, **env: str) -> str:
    done = subprocess.run(
        command,
        env={"PATH": os.environ["PATH"], "HOME": str(folder), **env},
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, (command, done.stdout[-3000:], done.stderr[-3000:])
    return done.stdout


@pytest.mark.parametrize("version", ["2025-10-28", "2026-01-21"])
def test_the_javascript_sdk_takes_every_answer(
    service: RunningService, peer_node: Path, version: str
) -> None:
    # Node looks for packages beside the program.
    program = Path(shutil.copy(HERE / "node/apps_calls.mjs", peer_node))
    told = json.loads(
        run(["node", program, service.base, service.token, version, rows.IMAGE], peer_node)
    )

    assert told["composeHash"] == told["provision"]["compose_hash"]
    assert told["provision"]["app_env_encrypt_pubkey"] == told["envKey"]["public_key"]
    assert [app["app_id"] for app in told["list"]["dstack_apps"]] == [told["commit"]["app_id"]]
    assert json.loads(told["revision"]["compose_file"])["runner"] == "docker-compose"
    assert told["attestation"]["instances"][0]["error"]
    assert told["devices"] == {
        "is_onchain_kms": False, "allow_any_device": None, "chain_id": None,
        "app_contract_address": None, "devices": [],
    }  # fmt: skip
    assert told["isAllowed"]["is_allowed"] is False and told["isAllowed"]["error"]
    assert list(told["statuses"]) == [told["commit"]["vm_uuid"]]
    assert told["instanceIds"]["items"] == [told["instanceId"]]
    assert told["stop"]["status"] == "stopped" and told["start"]["status"] == "running"
    assert told["visibility"]["public_sysinfo"] is False
    assert len(told["after"]["cvms"]) == 3
    assert [each["operation_type"] for each in told["history"]["revisions"]] == [
        *["replicate"] * 2, *["compose_update"] * 6, "deploy",
    ]  # fmt: skip
    assert told["gone"] == 404


@pytest.fixture(scope="module")
def phala_python(peer_python: Path) -> str:
    """Where Python finds PyPI phala-cloud: apart, as it asks for a package that no Python of today can build."""
    lock = HERE / "python/apps-requirements.txt"

    def install(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        target = ["--require-hashes", "--no-deps", "--target", folder, "-r", lock]
        subprocess.run([*pip, *target], check=True)

    return f"{installed('python-apps', lock, install)}:{peer_python}"


@pytest.mark.parametrize("version", ["2026-05-22", "2026-06-23"])
def test_the_python_sdk_takes_every_answer(
    service: RunningService, phala_python: str, version: str, tmp_path: Path
) -> None:
    program = [sys.executable, "-S", HERE / "python/apps_calls.py"]
    given = [service.base, service.token, version, rows.IMAGE]
    told = json.loads(run([*program, *given], tmp_path, PYTHONPATH=phala_python))

    assert told["commit"]["id"].startswith("cvm_")
    assert told["info"]["cvms"][0]["id"] == told["commit"]["id"]
    assert told["list"]["dstack_apps"][0]["app_id"] == told["provision"]["app_id"]
    # Each of the two says itself which version it speaks.
    assert told["kms"]["items"][0]["slug"] == "main"
    assert told["contracts"]["items"][0]["contract_address"] == "phala"
    assert told["patch"]["correlation_id"]


@dataclass
class CommandLine:
    """The command line of npm in a folder of its own."""

    service: RunningService
    node: Path
    folder: Path

    def __call__(self, *arguments: str) -> str:
        return run(
            [self.node / "node_modules/.bin/phala", *arguments],
            self.folder,
            PHALA_CLOUD_API_PREFIX=f"{self.service.base}/api/v1",
            PHALA_CLOUD_API_KEY=self.service.token,
        )

    def json(self, *arguments: str) -> Any:
        said = self(*arguments, "--json")
        return json.loads(said[said.index("{") :])

    def compose(self, version: int) -> str:
        """Writes the app's docker-compose file."""
        (self.folder / "docker-compose.yml").write_text(APP.format(version=version))
        return "docker-compose.yml"


@pytest.fixture
def real(image_dir: tuple[Path, str], tmp_path: Path) -> Iterator[RunningService]:
    """A service with real VMs and a KMS that lets in what its users deploy."""
    kms = RunningKms(tmp_path / "kms", core="enforce_self_authorization = false", check_image=True)
    own = f"https://10.0.2.2:{kms.port}"
    made = RunningService(
        Path(f"/tmp/cm-{os.getpid()}-phala"),
        image_dir[0],
        top=f'kms_url = "{kms.url}"',
        extra=f'kms_urls = ["{own}"]\n'
        f'[kms]\nregister_apps = true\npolicy_file = "{kms.data_dir / "policy.json"}"\n'
        '[apps]\ninstance_types = [{id = "tdx.small", vcpu = 2, memory_mb = 2048, disk_gb = 2}]\n',
    )
    try:
        made.start()
        kms.trust(made.data_dir / "tee")
        kms.start()
        kms.policy("allow", "--os-image", manifest.digest(image_dir[0] / image_dir[1]))
        yield made
    finally:
        made.end()
        kms.stop()


@pytest.mark.timeout(1800)  # three boots, each asked about by a program of its own
def test_the_command_line_from_deploy_to_delete(
    real: RunningService, peer_node: Path, tmp_path: Path
) -> None:
    phala = CommandLine(real, peer_node, tmp_path)
    said = phala(
        "deploy", "-n", "real-app", "-c", phala.compose(1), "-e", f"SECRET={SECRET}", "--no-dev-os"
    )
    match = re.search(r"CVM ID:\s+(\S+)", said)
    assert match, said
    vm_id = match[1]
    real.wait_for(vm_id, within_s=BOOT_S, boot_progress="done")

    def container_says(text: str) -> str:
        return until(
            lambda: text in (log := phala("logs", "--cvm-id", "real-app")) and log,
            seconds=60,
            what=f"{text!r} in the container's log",
        )

    assert SECRET in container_says("version 1")
    assert "hello" in phala("ps", "real-app")
    assert "boot" in phala("logs", "--serial", "--cvm-id", "real-app")
    shown = phala.json("cvms", "get", "real-app")
    assert shown["status"] == "running"
    info = real.info(vm_id)
    (port,) = (lease for lease in published(real, vm_id) if lease[1] == 8000)
    assert info["app_id"]
    # It says its word before it listens.
    until(lambda: answers(f"http://127.0.0.1:{port[0]}/"), seconds=60, what="the app")

    attested = attestation(real, info["app_id"])
    assert attested["error"] is None
    assert attested["quote"] and attested["tcb_info"]["rtmr3"]
    assert attested["app_certificates"][0]["quote"] == attested["quote"]

    phala("cvms", "stop", "real-app")
    assert real.info(vm_id)["status"] == "stopped"
    phala("cvms", "start", "real-app")
    real.wait_for(vm_id, within_s=BOOT_S, boot_progress="done")
    phala("deploy", "--cvm-id", "real-app", "-c", phala.compose(2), "-e", f"SECRET={SECRET}")
    real.wait_for(vm_id, within_s=BOOT_S, boot_progress="done")
    assert SECRET in container_says("version 2")

    phala("cvms", "delete", "real-app", "-f")
    assert "real-app" not in phala("cvms", "list")


def answers(url: str) -> bool:
    """Whether there is a page."""
    try:
        return requests.get(url, timeout=20).ok
    except requests.RequestException:
        return False


def published(service: RunningService, vm_id: str) -> list[tuple[int, int]]:
    """Host and guest port of what a VM publishes, from the interface's own answer."""
    told = service.request("GET", f"/api/v1/cvms/{vm_id}").json()
    return [
        (int(port), int(guest))
        for url, guest in ((each["app"], each["port"]) for each in told["endpoints"])
        for port in re.findall(r":(\d+)", url)
    ]


def attestation(service: RunningService, app_id: str) -> dict[str, Any]:
    """What the only guest of an app says of itself."""
    (instance,) = service.request("GET", f"/api/v1/apps/{app_id}/attestations").json()["instances"]
    found: dict[str, Any] = instance
    return found
