"""`casemate serve` as a process, on the stand-in for QEMU."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from cli.client import Client
from image.registry import Image
from tests.common import rows
from tests.common.service import has_ended
from tests.common.waiting import listens, until
from vmm import process

CASEMATE = Path(sys.executable).with_name("casemate")


@dataclass
class Service:
    """A running service on a Unix socket."""

    process: subprocess.Popen[bytes]
    data_dir: Path
    log: Path

    def call(self, path: str, **fields: Any) -> Any:
        answer = Client(f"unix:{self.data_dir / 'http.sock'}", "").request(
            "POST", path, json=fields
        )
        assert answer.status_code == 200, answer.text
        return answer.json() if answer.content else None

    def is_ready(self) -> bool:
        assert self.process.poll() is None, self.log.read_text()
        return listens(self.data_dir / "http.sock")

    def children(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children()

    def is_background(self, child: psutil.Process) -> bool:
        """The background process is the one that does not listen."""
        return not any(
            each.laddr == str(self.data_dir / "http.sock") for each in child.net_connections("unix")
        )

    def live(self, vm_id: str) -> process.Process | None:
        return process.find(self.data_dir / "vm" / vm_id)

    def shown(self, vm_id: str) -> dict[str, Any]:
        info: dict[str, Any] = self.call("/prpc/GetInfo", id=vm_id)["info"]
        return info


@pytest.fixture
def file(data_dir: Path, fake_qemu: Path, image: Image) -> Path:
    path = data_dir / "casemate.toml"
    path.write_text(
        f'address = "unix:{data_dir}/http.sock"\ndata_dir = "{data_dir}"\n'
        f'[cvm]\nqemu_path = "{fake_qemu}"\naccel = "tcg"\nsimulate = true\n'
        "[cvm.auto_restart]\nenabled = false\n[server]\nworkers = 2\nthreads = 4\n"
    )
    return path


@pytest.fixture
def start(data_dir: Path, file: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Starts the service once more, and ends what is left of it with the test."""
    for name in ("ADDRESS", "DATA_DIR", "ADMIN_TOKEN"):
        monkeypatch.delenv(f"CASEMATE_{name}", raising=False)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(data_dir / "run"))
    started: list[Service] = []

    def begin(*, ready: bool = True) -> Service:
        log = data_dir / "service.log"
        with open(log, "ab") as output:
            made = subprocess.Popen([CASEMATE, "serve", "-c", file], stdout=output, stderr=output)
        started.append(Service(made, data_dir, log))
        if ready:
            until(started[-1].is_ready, seconds=30)
        return started[-1]

    yield begin
    for service in started:
        if service.process.poll() is None:
            for child in service.children():
                with contextlib.suppress(psutil.NoSuchProcess):
                    child.kill()
            service.process.kill()
        service.process.wait(30)


def test_the_service_is_ready_soon_and_answers(start: Any) -> None:
    service = start()

    assert service.call("/prpc/Version")["version"]
    assert service.call("/prpc/Status") == {"vms": [], "port_mapping_enabled": False, "total": 0}


def test_what_it_keeps_is_closed_to_others(start: Any, data_dir: Path) -> None:
    service = start()
    vm_id = service.call("/prpc/CreateVm", **rows.request(encrypted_env="00"))["id"]
    until(lambda: service.shown(vm_id)["status"] == "running")

    assert stat.S_IMODE(data_dir.stat().st_mode) == 0o700
    made_here = ("vm", "casemate.db", "casemate.db-wal", "admin-token", "session-key", "tee")
    for name in made_here:
        for path in (data_dir / name, *(data_dir / name).rglob("*")):
            assert stat.S_IMODE(path.lstat().st_mode) & 0o077 == 0, path
    token = (data_dir / "admin-token").read_text().strip()
    assert token not in service.log.read_text()


def is_of(process: psutil.Process, folder: Path) -> bool:
    """Whether a process that lives was started with a folder's name."""
    return str(folder) in " ".join(process.info["cmdline"] or [])


def test_no_secret_stands_in_an_argument_or_a_variable(start: Any, data_dir: Path) -> None:
    service = start()
    sealed = os.urandom(100).hex()
    vm_id = service.call("/prpc/CreateVm", **rows.request(encrypted_env=sealed))["id"]
    until(lambda: service.shown(vm_id)["status"] == "running")
    names = (
        "admin-token",
        "session-key",
        *(f"tee/{each.name}" for each in (data_dir / "tee").iterdir()),
    )
    texts = [
        (data_dir / name).read_bytes() for name in names if not name.endswith((".pem", ".json"))
    ]
    secrets = [text.strip() for text in texts] + [sealed.encode(), bytes.fromhex(sealed)]
    secrets += [secret.hex().encode() for secret in secrets]

    ours = [each for each in psutil.process_iter(["cmdline"]) if is_of(each, data_dir)]

    assert len(ours) >= 3  # master, runner and QEMU at least
    for process_ in (*ours, *service.children()):
        for name in ("cmdline", "environ"):
            shown = Path(f"/proc/{process_.pid}/{name}").read_bytes()
            assert not any(secret in shown for secret in secrets), (process_.pid, name)


def test_a_second_service_on_one_data_directory_is_refused(start: Any, data_dir: Path) -> None:
    service = start()

    second = start(ready=False)

    assert second.process.wait(30) == 1
    text = service.log.read_text()
    assert (
        f"casemate: {data_dir} is in use by another casemate serve (pid {service.process.pid})"
        in text
    )
    assert "Traceback" not in text
    assert service.call("/prpc/Version")


def test_an_asked_end_leaves_vms_running_and_the_next_service_finds_them(start: Any) -> None:
    first = start()
    vm_id = first.call("/prpc/CreateVm", **rows.request())["id"]
    before = first.live(vm_id)
    assert before is not None

    first.process.send_signal(signal.SIGTERM)

    assert first.process.wait(20) == 0
    assert first.live(vm_id) == before
    assert not list((first.data_dir / "run/dstack-vmm").glob("*.json"))
    second = start()
    assert second.shown(vm_id)["status"] == "running"
    assert second.live(vm_id) == before
    second.call("/prpc/StopVm", id=vm_id)
    assert second.shown(vm_id)["status"] == "stopped"


def test_kill_9_of_everything_but_qemu_loses_nothing(start: Any) -> None:
    first = start()
    kept, doomed = (first.call("/prpc/CreateVm", **rows.request())["id"] for _ in range(2))
    before = first.live(kept)
    family = first.children()
    assert before is not None
    rows.behave(first.data_dir / "vm" / doomed, ignore_sigterm=True)

    first.process.kill()
    first.process.wait(30)

    # Workers and background process end with their master.
    until(lambda: all(has_ended(each) for each in family), what="the end of the family")
    ended = first.live(doomed)
    assert ended is not None
    os.kill(ended.pid, signal.SIGKILL)
    second = start()
    assert second.live(kept) == before
    assert second.shown(kept)["status"] == "running"
    # It should run and does not: the start of the service starts it again.
    until(lambda: told(second, doomed) == ["vmm.start", "vmm.exit", "vmm.start"])
    assert told(second, kept) == ["vmm.start"]


def told(service: Service, vm_id: str) -> list[str]:
    return [event["event"] for event in service.shown(vm_id)["events"]]


def test_killed_workers_and_background_process_are_replaced(start: Any) -> None:
    service = start()
    until(lambda: len(service.children()) == 3)
    vm_id = service.call("/prpc/CreateVm", **rows.request())["id"]
    family = service.children()

    for child in family:
        child.kill()

    until(lambda: len(service.children()) == 3 and not set(service.children()) & set(family))
    assert service.call("/prpc/Version")
    found = service.live(vm_id)
    assert found is not None
    os.kill(found.pid, signal.SIGKILL)
    until(lambda: service.shown(vm_id)["status"] == "exited")
    said = "the background process ended; a new one was started"
    until(lambda: said in service.log.read_text(), what="the remark on the background process")


def test_a_request_that_is_no_http_is_refused_in_json(start: Any) -> None:
    service = start()
    for text in (
        b"nonsense\r\n\r\n",
        b"GET / HTTP/9.9\r\n\r\n",
        b"GET /" + b"a" * 9000 + b" HTTP/1.1\r\n\r\n",
    ):
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(10)
            connection.connect(str(service.data_dir / "http.sock"))
            connection.sendall(text)
            answer = b""
            while data := connection.recv(65536):
                answer += data

        head, _, body = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 4")
        assert b"Content-Type: application/json" in head
        refusal = json.loads(body)
        assert refusal["message"] == refusal["error"]
        assert refusal["message"].startswith("the request could not be read: ")


def test_a_bad_configuration_is_one_line(data_dir: Path, file: Path) -> None:
    file.write_text(file.read_text() + '[auth]\nenabled = "yes"\n')

    done = subprocess.run(
        [CASEMATE, "serve", "-c", file], capture_output=True, text=True, timeout=60, check=False
    )

    assert done.returncode == 1
    assert done.stderr == "casemate: auth.enabled: must be of type bool\n"
