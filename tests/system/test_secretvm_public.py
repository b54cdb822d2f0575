"""Port 29343 of a real VM: pages over TLS whose key is bound into the quote, checked by the service's own calls.

One VM is shared by the tests of this file: each boot under emulation costs 20 s and more.
"""

from __future__ import annotations

import hashlib
import json
import os
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import requests

from attest import quote
from cli.up import sample_compose
from tests.common.service import RunningService
from tests.common.waiting import free_port, until

BOOT_S = 240.0
TOKEN = "a token for developers"

# The VM's certificate is vouched for by its quote and by nobody else.
pytestmark = pytest.mark.filterwarnings("ignore::urllib3.exceptions.InsecureRequestWarning")


@dataclass
class Vm:
    """The shared VM: its app-compose, and the host port of its pages."""

    service: RunningService
    app_compose: str
    port: int

    def get(self, path: str, **kwargs: Any) -> requests.Response:
        """One of its pages."""
        return requests.get(
            f"https://127.0.0.1:{self.port}{path}", verify=False, timeout=20, **kwargs
        )

    def claim(self) -> dict[str, str]:
        """The fields of verify-docker, all told by its pages."""
        report = quote.parse(bytes.fromhex(self.get("/cpu").text)).report
        info = self.get("/info", headers={"X-Dev-Token": TOKEN}).json()
        registers = {f"RTMR{imr}": report.rtmrs[imr].hex() for imr in range(3)}
        return {
            "MRTD": report.mrtd.hex(),
            **registers,
            "rtmr3": report.rtmrs[3].hex(),
            "event_log": info["event_log"],
            "app_compose": info["app_compose"],
        }

    def verify_docker(self, compose: bytes, claim: dict[str, str]) -> dict[str, Any]:
        """What the service says of a claim."""
        url = f"{self.service.base}/api/verify-docker"
        files = {"dockercompose": ("docker-compose.yml", compose)}
        answer = requests.post(url, data=claim, files=files, timeout=20)
        assert answer.status_code == 200, answer.text
        said: dict[str, Any] = answer.json()
        return said


@pytest.fixture(scope="module")
def vm(image_dir: tuple[Path, str]) -> Iterator[Vm]:
    data_dir = Path(f"/tmp/cm-{os.getpid()}-pages")
    own_root = (
        f'[attestation]\nroot_ca = "{data_dir}/tee/tee-root-ca.pem"\n'
        f'collateral = "{data_dir}/tee/tee-collateral.json"'
    )
    service = RunningService(data_dir, image_dir[0], top=own_root)
    service.start()
    try:
        yield _made(service, image_dir[1])
    finally:
        service.end()


def _made(service: RunningService, image: str) -> Vm:
    document = sample_compose()
    document["secretvm"] = {
        "environment": "dev",
        "private": True,
        "persistent": False,
        "upgradeable": False,
        "dev_token_sha256": hashlib.sha256(TOKEN.encode()).hexdigest(),
        "docker_files_sha256": "",
    }
    text, port = json.dumps(document), free_port()
    made = service.call(
        "prpc/CreateVm",
        name="pages",
        image=image,
        compose_file=text,
        vcpu=2,
        memory=2048,
        disk_size=2,
        ports=[{"protocol": "tcp", "host_port": port, "vm_port": 29343}],
    )
    service.wait_for(made["id"], within_s=BOOT_S, boot_progress="done")
    vm = Vm(service, text, port)
    until(lambda: _answers(vm), seconds=60, what="the pages' answer")
    return vm


def _answers(vm: Vm) -> bool:
    try:
        return vm.get("/status").status_code == 200
    except requests.RequestException:
        return False


def test_the_key_of_the_connection_is_bound_into_the_quote(vm: Vm) -> None:
    certificate = ssl.PEM_cert_to_DER_cert(ssl.get_server_certificate(("127.0.0.1", vm.port)))
    answer = requests.get(
        f"{vm.service.base}/api/secretvm-cert-check?host=127.0.0.1&port={vm.port}", timeout=30
    )

    assert answer.status_code == 200, answer.text
    said = answer.json()
    assert said["ok"], said["errors"]
    assert (said["binding"], said["cpu_type"]) == ("spki", "tdx")
    assert said["certificate"]["sha256"] == hashlib.sha256(certificate).hexdigest()
    # Nobody vouches for the certificate but the quote, and the private VM shows no workload.
    assert said["checks"]["tls_chain_valid"] is False
    assert said["checks"]["workload_fetched"] is False
    assert said["checks"]["cpu_quote_verified"] is True


def test_the_compose_file_it_measured_is_found_out_from_log_and_document(vm: Vm) -> None:
    compose = json.loads(vm.app_compose)["docker_compose_file"].encode()
    claim = vm.claim()

    said = vm.verify_docker(compose, claim)
    assert said["status"] == "success", said
    assert (said["vm_type"], said["environment"]) == ("small", "prod")
    assert claim["app_compose"] == vm.app_compose

    other = vm.verify_docker(compose + b"\n", claim)
    assert (other["status"], other["code"]) == ("error", "MISMATCH")
    alone = {name: claim[name] for name in claim if name not in ("event_log", "app_compose")}
    assert "event_log" in vm.verify_docker(compose, alone)["message"]


def test_the_build_is_known_by_its_registers(vm: Vm) -> None:
    registers = {name: value for name, value in vm.claim().items() if name[:2] in ("MR", "RT")}
    answer = requests.post(f"{vm.service.base}/api/resolve-attestation", json=registers, timeout=20)

    assert answer.status_code == 200, answer.text
    assert answer.json()["vm_type"] == "small"


def test_the_quote_is_up_to_date_under_the_hosts_root(vm: Vm) -> None:
    answer = requests.post(
        f"{vm.service.base}/api/quote-parse", json={"quote": vm.get("/cpu").text}, timeout=20
    )

    assert answer.json()["status"]["result"] == "0", answer.json()["status"]


def test_private_pages_open_to_the_dev_token_alone(vm: Vm) -> None:
    closed = ("/logs", "/docker-compose", "/services", "/vm_upgrades", "/resources")

    assert {vm.get(path).status_code for path in closed} == {403}
    assert vm.get("/docker-compose?token=wrong").status_code == 403
    opened = vm.get("/docker-compose", headers={"Authorization": f"Bearer {TOKEN}"})
    assert opened.content == json.loads(vm.app_compose)["docker_compose_file"].encode()
    assert {vm.get(f"{path}?token={TOKEN}").status_code for path in closed} == {200}
    figures = vm.get("/resources", headers={"X-Dev-Token": TOKEN}).json()
    assert 0 < figures["memory_used_gb"] < figures["memory_total_gb"] < 2.1


def test_every_page_is_there_in_every_form(vm: Vm) -> None:
    for name in ("status", "cpu", "self", "info", "publickey_ed25519", "publickey_secp256k1"):
        for path in (f"/{name}", f"/{name}.html", f"/.well-known/{name}"):
            answer = vm.get(path)
            assert answer.status_code == 200, path
            assert answer.headers["Access-Control-Allow-Origin"] == "*"
            assert answer.headers["Content-Type"].startswith("text/html") == path.endswith(".html")
    assert vm.get("/status").json()["env"] == "dev"
    assert list(vm.get("/gpu").json()) == ["error", "details"]


def test_only_get_is_answered(vm: Vm) -> None:
    answer = requests.post(f"https://127.0.0.1:{vm.port}/cpu", verify=False, timeout=20)

    assert answer.status_code == 405
    assert list(answer.json()) == ["error"]
