"""A stand-in for the runners in VMs: it runs the jobs of a scheduler as processes of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from dataclasses import dataclass, field

from runs.executor import JobOrder, Listener, Stage


@dataclass
class FakeExecutor:
    """Runs orders at once, or when `boot` is called with `boots` off."""

    listener: Listener
    boots: bool = True
    ready: set[str] = field(default_factory=set)
    waiting: dict[str, list[JobOrder]] = field(default_factory=dict)
    processes: dict[str, subprocess.Popen[bytes]] = field(default_factory=dict)
    orders: dict[str, JobOrder] = field(default_factory=dict)
    released: list[str] = field(default_factory=list)
    stops: list[tuple[str, int]] = field(default_factory=list)
    lock: threading.RLock = field(default_factory=threading.RLock)

    def prepare(self, name: str, *, ssh: bool) -> str:
        app = {"manifest_version": 2, "name": name, "runner": "docker-compose"}
        return json.dumps(app)

    def watch(self, vm_id: str) -> None:
        if self.boots:
            threading.Thread(target=self.boot, args=(vm_id,), daemon=True).start()

    def boot(self, vm_id: str) -> None:
        """The runner of a VM begins to answer."""
        with self.lock:
            if vm_id in self.ready:
                return
            self.ready.add(vm_id)
            waiting = self.waiting.pop(vm_id, [])
        self.listener.on_ready(vm_id)
        for order in waiting:
            self._begin(order)

    def is_ready(self, vm_id: str) -> bool:
        return vm_id in self.ready

    def submit(self, vm_id: str, order: JobOrder) -> None:
        with self.lock:
            self.orders[order.submission_id] = order
            if vm_id not in self.ready:
                self.waiting.setdefault(vm_id, []).append(order)
                return
        self._begin(order)

    def _begin(self, order: JobOrder) -> None:
        threading.Thread(target=self._run, args=(order,), daemon=True).start()

    def _run(self, order: JobOrder) -> None:
        job = order.submission_id
        self.listener.on_state(job, Stage.PULLING, None, "")
        with self.lock:
            if job in self.released:
                return
            process = self.processes[job] = subprocess.Popen(
                ["/bin/bash", "-c", order.command[-1]],
                env={**os.environ, **order.env},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.listener.on_state(job, Stage.RUNNING, None, "")
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), 32768):
            self.listener.on_output(job, data.replace(b"\n", b"\r\n"))
        code = process.wait()
        self.listener.on_state(job, Stage.EXITED, code if code >= 0 else 128 - code, "")

    def stop(self, vm_id: str, submission_id: str, grace_s: int) -> None:
        self.stops.append((submission_id, grace_s))
        process = self.processes.get(submission_id)
        if process is not None and process.poll() is None:
            os.killpg(process.pid, signal.SIGTERM if grace_s else signal.SIGKILL)

    def release(self, vm_id: str, submission_id: str) -> None:
        self.released.append(submission_id)

    def forget(self, vm_id: str) -> None:
        self.ready.discard(vm_id)

    def close(self) -> None:
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
