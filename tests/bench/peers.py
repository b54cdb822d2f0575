"""The programs that Casemate is compared with: a bare QEMU, and gunicorn with a Flask hello."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import requests

from tests.common.service import free_port, until

_CHECKOUT = Path(__file__).resolve().parents[2]


class Qmp:
    """The shortest way to talk to a QEMU: one connection, blocking."""

    def __init__(self, path: Path) -> None:
        self.socket = socket.socket(socket.AF_UNIX)
        self.socket.settimeout(10)
        try:
            self.socket.connect(str(path))
        except OSError:
            self.socket.close()
            raise
        self.lines = self.socket.makefile("rb")
        self.lines.readline()  # the greeting
        self.execute("qmp_capabilities")

    def execute(self, command: str) -> Any:
        """Sends a command and returns what it gave, past the events."""
        self.socket.sendall(json.dumps({"execute": command}).encode())
        while True:
            answer = json.loads(self.lines.readline())
            if "event" not in answer:
                return answer["return"]

    def close(self) -> None:
        """Hangs up."""
        self.lines.close()
        self.socket.close()


class BareQemu:
    """QEMU with the argument vector of a VM, started by nothing but exec."""

    def __init__(self, workdir: Path, folder: Path) -> None:
        """`workdir` is that VM's, stopped; its disks are copied to `folder`."""
        folder.mkdir()
        for disk in ("hda.img", "shared.img"):
            shutil.copyfile(workdir / disk, folder / disk)
        launch = json.loads((workdir / "launch.json").read_text())
        self.argv = [part.replace(str(workdir), str(folder)) for part in launch["argv"]]
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None
        self.qmp: Qmp | None = None

    def start(self) -> float:
        """Seconds from exec until query-status answers."""
        for stale in self.folder.glob("*.sock"):
            stale.unlink()
        with open(self.folder / "stderr.log", "ab") as log:
            began = time.perf_counter()
            self.process = subprocess.Popen(self.argv, stdin=subprocess.DEVNULL, stderr=log)
        self.qmp = self._greeted()
        assert self.qmp.execute("query-status")["running"]
        return time.perf_counter() - began

    def _greeted(self) -> Qmp:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:
            assert self.process is not None and self.process.poll() is None, "QEMU ended at once"
            with contextlib.suppress(FileNotFoundError, ConnectionRefusedError):
                return Qmp(self.folder / "qmp.sock")
            time.sleep(0.001)
        raise AssertionError("QEMU does not answer")

    def quit(self) -> float:
        """Seconds from the command quit until the process is gone."""
        assert self.process is not None and self.qmp is not None
        began = time.perf_counter()
        self.qmp.execute("quit")
        self.process.wait(timeout=30)
        took = time.perf_counter() - began
        self.qmp.close()
        return took

    def end(self) -> None:
        """Kills what is left of it."""
        if self.process is not None and self.process.poll() is None:
            self.process.kill()
            self.process.wait()


class Hello:
    """gunicorn as `casemate serve` sets it up, with tests/bench/hello.py."""

    def __init__(self) -> None:
        self.port = free_port()
        self.base = f"http://127.0.0.1:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> float:
        """Seconds until it answers."""
        began = time.perf_counter()
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-m", "gunicorn", "--bind", f"127.0.0.1:{self.port}"),
                *("--workers", "2", "--threads", "64", "--worker-class", "gthread"),
                *("--preload", "--no-control-socket", "--timeout", "120"),
                *("--graceful-timeout", "3", "tests.bench.hello:application"),
            ],
            cwd=_CHECKOUT,
            stdin=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=dict(os.environ),
        )
        until(self._answers, within_s=30, what="the start of the Flask hello")
        return time.perf_counter() - began

    def _answers(self) -> bool:
        try:
            return requests.get(self.base, timeout=5).status_code == 200
        except requests.ConnectionError:
            return False

    def end(self) -> None:
        """Ends it."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=20)
