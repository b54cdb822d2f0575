"""The programs that Casemate is compared with: a bare QEMU, libvirt, and gunicorn with a Flask hello."""

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

from tests.common.waiting import free_port, until

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


_LIBVIRTD_CONF = """
unix_sock_dir = "{folder}"
auth_unix_rw = "none"
auth_unix_ro = "none"
"""
# A device of KVM that opens and does not work costs libvirt seconds at each call: it is hidden from it.  So is
# the machine's own configuration; and there is no log daemon.
_APART = """
mount -t tmpfs none /etc/libvirt
printf 'stdio_handler = "file"\nsecurity_driver = "none"\n' > /etc/libvirt/qemu.conf
mount -t tmpfs none /mnt && mkdir -p /mnt/pts /mnt/shm
for each in null zero random urandom full tty; do touch /mnt/$each; mount --bind /dev/$each /mnt/$each; done
mount --rbind /dev/pts /mnt/pts; mount --bind /dev/shm /mnt/shm; mount --move /mnt /dev
exec "$@"
"""
_DOMAIN = """
<domain type='qemu'><name>casemate-bench</name><memory unit='MiB'>128</memory><vcpu>1</vcpu>
<os><type arch='x86_64' machine='q35'>hvm</type></os>
<devices><emulator>/usr/bin/qemu-system-x86_64</emulator></devices></domain>
"""


class Libvirt:
    """A libvirt daemon of our own, and one emulated q35 machine of 128 MiB without devices."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir()
        self.folder = folder
        self.process: subprocess.Popen[bytes] | None = None

    @classmethod
    def installed(cls, folder: Path) -> Libvirt | None:
        """A daemon to start, where libvirt is installed and we may start one."""
        found = shutil.which("virsh") and shutil.which("libvirtd")
        return cls(folder) if found and os.geteuid() == 0 else None

    def start_daemon(self) -> None:
        """Starts libvirtd and waits until it answers."""
        conf = self.folder / "libvirtd.conf"
        conf.write_text(_LIBVIRTD_CONF.format(folder=self.folder))
        (self.folder / "domain.xml").write_text(_DOMAIN)
        with open(self.folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                [
                    *("unshare", "--mount", "sh", "-c", _APART, "sh"),
                    *("libvirtd", "-f", conf, "-p", self.folder / "pid"),
                ],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        until(self._answers, seconds=60, what="the start of libvirtd")
        self.create()
        self.destroy()

    def create(self) -> float:
        """Seconds for `virsh define` and `virsh start`."""
        began = time.perf_counter()
        self._virsh("define", os.fspath(self.folder / "domain.xml"))
        self._virsh("start", "casemate-bench")
        return time.perf_counter() - began

    def destroy(self) -> float:
        """Seconds for `virsh destroy`; the definition goes too."""
        began = time.perf_counter()
        self._virsh("destroy", "casemate-bench")
        took = time.perf_counter() - began
        self._virsh("undefine", "casemate-bench")
        return took

    def _answers(self) -> bool:
        try:
            self._virsh("list")
        except subprocess.CalledProcessError:
            return False
        return True

    def _virsh(self, *arguments: str) -> None:
        uri = f"qemu:///system?socket={self.folder}/libvirt-sock"
        subprocess.run(
            ["virsh", "-c", uri, *arguments], check=True, capture_output=True, timeout=60
        )

    def end(self) -> None:
        """Ends the daemon; its machine was destroyed by each round."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            self.process.wait(timeout=30)


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
        until(self._answers, seconds=30, what="the start of the Flask hello")
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
