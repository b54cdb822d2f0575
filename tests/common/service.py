"""A real `casemate serve` process for tests, and the calls one makes to it."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil
import requests

from tests.common.waiting import free_port, until
from vmm import process


@dataclass
class RunningService:
    """One service on a data directory of its own; restartable."""

    data_dir: Path
    images: Path
    extra: str = ""
    top: str = ""
    port: int = field(default_factory=free_port)
    token: str = "system-test-token"
    process: subprocess.Popen[bytes] | None = None

    @property
    def base(self) -> str:
        """The service's URL."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def log(self) -> Path:
        """What the service wrote to standard error."""
        return self.data_dir.parent / f"{self.data_dir.name}.log"

    def start(self, **variables: str) -> float:
        """Starts the service with these environment variables; returns the seconds until it answered."""
        config = self.data_dir.parent / f"{self.data_dir.name}.toml"
        config.write_text(
            f'address = "tcp:127.0.0.1:{self.port}"\ndata_dir = "{self.data_dir}"\n{self.top}\n'
            f'[image]\npath = "{self.images}"\n'
            "[auth]\nenabled = true\n"
            f"[cvm]\nsimulate = true\n{self.extra}\n"
            "[cvm.port_mapping]\nenabled = true\n"
            'range = [{protocol = "tcp", from = 1024, to = 65535}]\n'
            "[cvm.auto_restart]\nenabled = false\n"
        )
        began = time.monotonic()
        env = {k: v for k, v in os.environ.items() if not k.startswith("CASEMATE_")}
        with open(self.log, "ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "cli.main", "serve", "-c", config],
                env={**env, "CASEMATE_ADMIN_TOKEN": self.token, **variables},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self._answers, seconds=60, what=f"the service's start (log: {self.log})")
        return time.monotonic() - began

    def _answers(self) -> bool:
        assert self.process is not None and self.process.poll() is None, self.log.read_text()
        try:
            return requests.get(f"{self.base}/prpc/Version", timeout=5).status_code == 401
        except (requests.ConnectionError, requests.Timeout):
            return False

    def request(self, verb: str, path: str, **kwargs: Any) -> requests.Response:
        """One HTTP request with the token."""
        headers = {"Authorization": f"Bearer {self.token}"}
        return requests.request(verb, self.base + path, headers=headers, timeout=60, **kwargs)

    def call(self, path: str, **message: Any) -> Any:
        """One RPC that must succeed, by its path below the root."""
        answer = self.request("POST", f"/{path}", json=message)
        assert answer.status_code == 200, (path, answer.status_code, answer.text)
        return answer.json() if answer.content else None

    def info(self, vm_id: str) -> dict[str, Any]:
        """GetInfo of a VM that is there."""
        found = self.call("prpc/GetInfo", id=vm_id)
        assert found["found"], vm_id
        info: dict[str, Any] = found["info"]
        return info

    def wait_for(self, vm_id: str, *, within_s: float, **wanted: str) -> dict[str, Any]:
        """GetInfo once it shows the wanted values; a boot error fails at once."""

        seen: list[dict[str, Any]] = []
        starts: list[str] = []

        def shows() -> dict[str, Any] | None:
            info = self.info(vm_id)
            seen[:] = [info]
            if "boot_error" not in wanted:
                assert not info["boot_error"], (info["boot_error"], self.serial(vm_id))
            if "boot_progress" in wanted and info["status"] == "exited":
                assert self._emulator_failed(vm_id, starts), (info["events"], self.serial(vm_id))
                starts.append(vm_id)
                self.call("prpc/StartVm", id=vm_id)
            return info if all(info[key] == value for key, value in wanted.items()) else None

        try:
            return until(shows, seconds=within_s, what=f"{wanted} of VM {vm_id}")  # type: ignore[return-value]
        except AssertionError as late:
            log = self.log.read_text(errors="replace")[-3000:]
            children = [(child.pid, child.status(), child.cmdline()) for child in self.children()]
            raise AssertionError(f"{late}\nit is: {seen}\n{children}\n{log}") from None

    def _emulator_failed(self, vm_id: str, starts: list[str]) -> bool:
        """Whether a boot met the flaw of emulation that docs/hardware.md tells of, for the first or second time."""
        said = self.serial(vm_id)
        return len(starts) < 2 and "Oops: int3" in said and "Kernel panic" in said

    def serial(self, vm_id: str) -> str:
        """What the guest's console printed last."""
        return self.request("GET", f"/logs?id={vm_id}&lines=60").text

    def children(self) -> list[psutil.Process]:
        """The service's workers and its background process."""
        assert self.process is not None
        return psutil.Process(self.process.pid).children()

    def stop(self) -> None:
        """Ends the service in order."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=60)

    def kill(self, *, everything: bool) -> None:
        """kill -9 of the master, or of the master, its workers and the background process.

        Left alone, workers and background process end with their master.
        """
        assert self.process is not None
        # Stopped first: it would put another in the place of one that ends just now.
        self.process.send_signal(signal.SIGSTOP)
        children = self.children()
        self.process.kill()
        for each in children if everything else []:
            # Some are asked to end with their master, and are as fast as we.
            with contextlib.suppress(psutil.NoSuchProcess):
                each.kill()
        self.process.wait(timeout=30)
        until(
            lambda: all(has_ended(child) for child in children),
            what="the end of the master's children",
        )

    def end(self) -> None:
        """Ends the service, its balancer and every VM of its data directory, and takes that away: disks are large."""
        self.stop()
        end_processes(self.data_dir)
        shutil.rmtree(self.data_dir, ignore_errors=True)

    def qemus(self) -> list[psutil.Process]:
        """The QEMU processes of this data directory."""
        return [each for each in _processes() if _belongs(each, "qemu-system", str(self.data_dir))]

    def runners(self) -> list[psutil.Process]:
        """The processes beside them (vmm/runner.py)."""
        return [each for each in _processes() if _belongs(each, "runner.py", str(self.data_dir))]


def end_processes(folder: Path) -> None:
    """Ends all that a service that is over has started below a folder; nothing writes there afterwards."""
    for record in folder.glob("**/launch.json"):
        while found := process.find(record.parent):
            process.end(record.parent, found, grace_s=0)
        process.wait_unlocked(record.parent, 10)


def has_ended(process: psutil.Process) -> bool:
    """Whether a process is over."""
    # Whoever inherits an orphan may be slow to reap it.
    try:
        return not process.is_running() or process.status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _processes() -> Iterator[psutil.Process]:
    yield from psutil.process_iter()


def _belongs(process: psutil.Process, program: str, folder: str) -> bool:
    try:
        command = process.cmdline()
    except psutil.Error:
        return False
    # A script's interpreter and its options come first.
    is_it = any(program in word for word in command[:4])
    return is_it and any(folder in argument for argument in command)
