"""The examples of dstack's VMM document, as curl sends them, against a real service.

Host, port, token and ids are changed, and what stands in angle brackets; nothing else is.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.common import rows
from tests.common.service import RunningService, end_processes
from tests.common.waiting import free_port, until
from vmm import network

IMAGE = "dstack-0.5.0"
VM = "a1b2c3d4-e5f6-7890-abcd-ef1234567890"
APP = "abcdef1234567890" * 2 + "abcdef12"
JSON = "-H 'Content-Type: application/json'"
COMPOSE = (
    '{\\"docker_compose_file\\":\\"...\\",\\"docker_config\\":{},\\"features\\":[],'
    '\\"allowed_envs\\":[\\"DB_HOST\\",\\"DB_PASS\\"]}'
)
KEY = {"public_key": "01" * 32, "signature": "02" * 65, "timestamp": 1707500000}
GUEST = {
    "Info": {
        "version": "0.5.0",
        "app_id": "ab" * 20,
        "instance_id": "cd" * 20,
        "app_cert": "-----BEGIN CERTIFICATE-----\n...",
        "tcb_info": "{}",
        "device_id": "ef" * 32,
    },
    "SysInfo": {
        "os_name": "Ubuntu",
        "os_version": "24.04",
        "kernel_version": "6.8.0",
        "cpu_model": "Intel Xeon",
        "num_cpus": 2,
        "total_memory": 4294967296,
        "available_memory": 3221225472,
        "used_memory": 1073741824,
        "free_memory": 2147483648,
        "total_swap": 0,
        "used_swap": 0,
        "free_swap": 0,
        "uptime": 9000,
        "loadavg_one": 1,
        "loadavg_five": 2,
        "loadavg_fifteen": 1,
        "disks": [
            {
                "name": "/dev/vda1",
                "mount_point": "/",
                "total_size": 42949672960,
                "free_size": 38654705664,
            }
        ],
    },
    "NetworkInfo": {
        "dns_servers": ["1.1.1.1", "1.0.0.1"],
        "gateways": [{"address": "10.0.2.2"}],
        "interfaces": [
            {
                "name": "eth0",
                "addresses": [{"address": "10.0.2.10", "prefix": 24}],
                "rx_bytes": 1234567,
                "tx_bytes": 7654321,
                "rx_errors": 0,
                "tx_errors": 0,
            }
        ],
        "wg_info": "interface: wg-ds-gw...",
    },
    "ListContainers": {
        "containers": [
            {
                "id": "abc123def456",
                "names": ["my-app-web-1"],
                "image": "nginx:latest",
                "image_id": "sha256:abc123",
                "created": 1707500000,
                "state": "running",
                "status": "Up 2 hours",
            }
        ]
    },
}


@dataclass
class Site:
    """A service, and curl with its token in ~/.curlrc."""

    service: RunningService
    home: Path
    sockets: Path

    def curl(self, command: str, *, vm: str = VM, own_token: bool = False) -> str:
        """Runs a command as it is printed; returns the body of an answer with status 200."""
        text = command.replace("http://127.0.0.1:9080", self.service.base).replace(VM, vm)
        text = text.replace("<your-api-token>", self.service.token)
        text = text.replace("<token>", self.service.token)
        done = subprocess.run(
            ["bash", "-c", text.replace("curl ", "curl -sS --fail-with-body ", 1)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={"PATH": "/usr/bin:/bin", "HOME": "/nonexistent" if own_token else str(self.home)},
        )
        assert done.returncode == 0, (done.stdout, done.stderr)
        return done.stdout

    def post(self, method: str, fields: str, *, vm: str = VM) -> Any:
        """The document's usual form of a call."""
        url = f"http://127.0.0.1:9080/{method}"
        text = self.curl(f"curl -X POST {url} \\\n  {JSON} \\\n  -d '{fields}'", vm=vm)
        return json.loads(text) if text else None

    def create(self) -> str:
        """The example of CreateVm."""
        fields = f"""{{
    "name": "my-app",
    "image": "{IMAGE}",
    "compose_file": "{COMPOSE}",
    "vcpu": 2,
    "memory": 4096,
    "disk_size": 40,
    "ports": [
      {{"protocol": "tcp", "host_port": {free_port()}, "vm_port": 80}}
    ],
    "encrypted_env": "00ff"
  }}"""
        answer = self.post("prpc/CreateVm", fields)
        assert set(answer) == {"id"}
        vm_id: str = answer["id"]
        return vm_id


class Kms(BaseHTTPRequestHandler):
    """Answers with one key."""

    def do_POST(self) -> None:
        self.rfile.read(int(self.headers["Content-Length"]))
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps({**KEY, "signature_v1": "03" * 65}).encode())

    def log_message(self, *_: object) -> None:
        """Is silent."""


@pytest.fixture(scope="module")
def site(fake_qemu: Path) -> Iterator[Site]:
    folder = Path(tempfile.mkdtemp(prefix="cm-", dir="/tmp"))
    rows.image(folder / "images", IMAGE, version="0.5.0")
    rows.image(folder / "images", "dstack-dev-0.5.0", version="0.5.0", is_dev=True)
    data = folder / "data"
    rows.behave(data / "vm", guest={name: {"result": told} for name, told in GUEST.items()})
    (folder / ".curlrc").write_text('header = "Authorization: Bearer system-test-token"\n')
    kms = HTTPServer(("127.0.0.1", 0), Kms)
    threading.Thread(target=kms.serve_forever).start()
    service = RunningService(
        data,
        folder / "images",
        extra=f'qemu_path = "{fake_qemu}"\naccel = "tcg"\nmax_allocable_vcpu = 64\n'
        'kms_urls = ["https://kms.example.com:9201"]\n'
        'gateway_urls = ["https://gw.example.com:9200"]\n'
        '[gateway]\nbase_domain = "example.com"\n[server]\nworkers = 1\n',
        top=f'kms_url = "http://127.0.0.1:{kms.server_port}"',
    )
    try:
        service.start()
        yield Site(service, folder, data)
    finally:
        service.stop()
        end_processes(data)
        kms.shutdown()
        kms.server_close()
        shutil.rmtree(folder)


@pytest.fixture(scope="module")
def vm(site: Site) -> str:
    return site.create()


def fits(answer: Any, printed: Any) -> bool:
    """Whether an answer has every key that is printed, with values of the printed kinds."""
    if isinstance(printed, dict):
        return isinstance(answer, dict) and all(
            key in answer and fits(answer[key], value) for key, value in printed.items()
        )
    if isinstance(printed, list):
        return isinstance(answer, list) and all(fits(each, printed[0]) for each in answer)
    return type(answer) is type(printed)


VM_INFO = {
    "id": "",
    "name": "my-app",
    "status": "running",
    "uptime": "2h 30m",
    "app_id": "",
    "boot_progress": "done",
    "boot_error": "",
    "shutdown_progress": "",
    "image_version": "0.5.0",
    "events": [{"event": "boot.progress", "body": "setting up docker", "timestamp": 1}],
}
CONFIGURATION = {
    "name": "my-app",
    "image": IMAGE,
    "vcpu": 2,
    "memory": 4096,
    "disk_size": 40,
    "ports": [{"protocol": "tcp", "host_port": 1, "vm_port": 80, "host_address": ""}],
    "kms_urls": [""],
    "gateway_urls": [""],
}


def test_status_is_asked_as_curl_does_it_by_itself(site: Site, vm: str) -> None:
    answer = json.loads(site.curl("curl http://127.0.0.1:9080/prpc/Status -d '{}'"))

    assert vm in [each["id"] for each in answer["vms"]]


def test_a_token_comes_in_its_header(site: Site) -> None:
    fields = json.dumps(rows.request(image=IMAGE, stopped=True))

    answer = site.curl(
        'curl -H "Authorization: Bearer <your-api-token>" \\\n'
        f"  http://127.0.0.1:9080/prpc/CreateVm \\\n  -d '{fields}'",
        own_token=True,
    )

    assert set(json.loads(answer)) == {"id"}


def test_vms_are_listed(site: Site, vm: str) -> None:
    everything = site.post("prpc/Status", "{}")
    assert fits(everything, {"vms": [VM_INFO], "port_mapping_enabled": True, "total": 1})
    (own,) = [each for each in everything["vms"] if each["id"] == vm]
    assert fits(own["configuration"], CONFIGURATION)
    assert {key: own[key] for key in ("name", "status", "image_version")} == {
        "name": "my-app",
        "status": "running",
        "image_version": "0.5.0",
    }

    brief = site.post("prpc/Status", f'{{\n    "ids": ["{VM}"],\n    "brief": true\n  }}', vm=vm)
    assert [(each["id"], each["configuration"]) for each in brief["vms"]] == [(vm, None)]
    fields = '{\n    "keyword": "my-app",\n    "page": 0,\n    "page_size": 10\n  }'
    paged = site.post("prpc/Status", fields)
    assert vm in [each["id"] for each in paged["vms"]]


def test_one_vm_is_shown(site: Site, vm: str) -> None:
    answer = site.post("prpc/GetInfo", f'{{"id": "{VM}"}}', vm=vm)
    assert answer["found"] is True
    assert fits(answer["info"], VM_INFO)

    assert site.post("prpc/GetInfo", f'{{"id": "{VM}"}}')["found"] is False


def test_a_vm_goes_through_its_life(site: Site) -> None:
    vm_id = site.create()
    one = f'{{"id": "{VM}"}}'

    assert site.post("prpc/StopVm", one, vm=vm_id) is None
    assert site.service.info(vm_id)["status"] == "stopped"
    fields = f'{{\n    "id": "{VM}",\n    "vcpu": 4,\n    "memory": 8192\n  }}'
    assert site.post("prpc/ResizeVm", fields, vm=vm_id) is None
    assert site.service.info(vm_id)["configuration"]["vcpu"] == 4
    assert site.post("prpc/StartVm", one, vm=vm_id) is None
    assert site.service.info(vm_id)["status"] == "running"
    update = f"""{{
    "id": "{VM}",
    "compose_file": "{{\\"docker_compose_file\\":\\"...\\"}}",
    "encrypted_env": "01ff"
  }}"""
    answer = site.post("prpc/UpdateVm", update, vm=vm_id)
    assert len(bytes.fromhex(answer["id"])) == 20
    assert site.post("prpc/ShutdownVm", one, vm=vm_id) is None
    until(lambda: site.service.info(vm_id)["status"] == "stopped")
    assert site.post("prpc/RemoveVm", one, vm=vm_id) is None
    until(lambda: not site.service.call("prpc/GetInfo", id=vm_id)["found"])


def test_a_compose_text_has_its_hash(site: Site) -> None:
    fields = """{
    "name": "test",
    "compose_file": "{\\"docker_compose_file\\":\\"...\\"}",
    "image": "",
    "vcpu": 0,
    "memory": 0,
    "disk_size": 0
  }"""
    answer = site.post("prpc/GetComposeHash", fields)

    assert len(bytes.fromhex(answer.pop("hash"))) == 32
    assert answer == {}


def test_the_key_for_variables_comes_from_the_kms(site: Site) -> None:
    answer = site.post("prpc/GetAppEnvEncryptPubKey", f'{{"app_id": "{APP}"}}')

    assert answer == {**KEY, "signature_v1": "03" * 65}


def test_the_host_is_described(site: Site) -> None:
    images = site.post("prpc/ListImages", "{}")["images"]
    assert [(each["name"], each["version"], each["is_dev"]) for each in images] == [
        (IMAGE, "0.5.0", False),
        ("dstack-dev-0.5.0", "0.5.0", True),
    ]
    assert all(isinstance(json.loads(each["description"]), dict) for each in images)
    version = site.post("prpc/Version", "{}")
    assert set(version) == {"version", "rev"}
    assert version["rev"].startswith("git:")
    meta = site.post("prpc/GetMeta", "{}")
    assert meta["kms"] == {
        "url": "https://kms.example.com:9201",
        "urls": ["https://kms.example.com:9201"],
    }
    assert meta["gateway"] == {
        "url": "https://gw.example.com:9200",
        "base_domain": "example.com",
        "port": 8082,
        "agent_port": 8090,
        "urls": ["https://gw.example.com:9200"],
    }
    assert meta["resources"]["max_cvm_number"] == 1000
    assert meta["resources"]["max_allocable_memory_in_mb"] == 100000
    assert site.post("prpc/ListGpus", "{}") == {"gpus": [], "allow_attach_all": True}


def test_vms_are_read_again(site: Site, vm: str) -> None:
    answer = site.post("prpc/ReloadVms", "{}")

    assert answer["updated"] >= 1
    assert (answer["loaded"], answer["removed"]) == (0, 0)
    assert site.service.info(vm)["status"] == "running"


def test_a_lease_is_reported(site: Site, vm: str) -> None:
    mac = network.mac_address(vm)

    fields = f'{{"mac": "{mac}", "ip": "192.168.122.100"}}'

    assert site.post("prpc/ReportDhcpLease", fields) is None


@pytest.mark.parametrize("method", list(GUEST))
def test_a_guest_is_asked(site: Site, vm: str, method: str) -> None:
    assert site.post(f"guest/{method}", f'{{"id": "{VM}"}}', vm=vm) == GUEST[method]


def test_a_guest_is_shut_down(site: Site) -> None:
    vm_id = site.create()

    assert site.post("guest/Shutdown", f'{{"id": "{VM}"}}', vm=vm_id) is None


def test_pages_are_served(site: Site) -> None:
    for path in ("/", "/v1", "/beta", "/v0"):
        assert "<html" in site.curl(f"curl -L http://127.0.0.1:9080{path}"), path
    assert "swagger-ui" in site.curl("curl http://127.0.0.1:9080/api-docs/")


def test_logs_are_read_and_followed(site: Site, vm: str) -> None:
    header = 'curl -H "Authorization: Bearer <token>" \\\n  "http://127.0.0.1:9080/logs?id='
    assert "hello from" in site.curl(f'{header}{VM}&lines=100"', vm=vm, own_token=True)
    site.curl(f'{header}{VM}&ch=stdout&ansi=true"', vm=vm, own_token=True)

    url = f"{site.service.base}/logs?id={vm}&follow=true"
    follower = subprocess.Popen(
        ["curl", "-sSN", "-H", f"Authorization: Bearer {site.service.token}", url],
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert follower.stdout is not None
        said = (line for line in follower.stdout)
        assert any("hello from" in line for line in said)
        with open(site.sockets / "vm" / vm / "serial.log", "a") as log:
            log.write("later\n")
        assert any("later" in line for line in said)
        assert follower.poll() is None
    finally:
        follower.kill()
        follower.wait()
        follower.stdout.close() if follower.stdout else None
