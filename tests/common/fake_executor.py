"""A stand-in for the runners in VMs: it runs the jobs of a scheduler as processes of this machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

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
    threads: dict[str, threading.Thread] = field(default_factory=dict)
    is_closed: bool = False

    def prepare(self, name: str, *, ssh: bool) -> str:
        app = {"manifest_version": 2, "name": name, "runner": "docker-compose"}
        return json.dumps(app)

    def watch(self, vm_id: str) -> None:
        if self.boots:
            self.follow(vm_id, self.boot, vm_id)

    def follow(self, name: str, do: Callable[..., None], *words: Any) -> None:
        """Does something beside the caller, under the name of a VM or a job."""
        with self.lock:
            thread = self.threads[name] = threading.Thread(target=do, args=words, daemon=True)
        thread.start()

    def boot(self, vm_id: str) -> None:
        """The runner of a VM begins to answer."""
        with self.lock:
            if vm_id in self.ready:
                return
            self.ready.add(vm_id)
            waiting = self.waiting.pop(vm_id, [])
        if self.is_closed:
            return
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
        self.follow(order.submission_id, self._run, order)

    def _run(self, order: JobOrder) -> None:
        job = order.submission_id
        self.tell(job, Stage.PULLING)
        with self.lock:
            if self.is_closed or job in self.released:
                return
            process = self.processes[job] = subprocess.Popen(
                ["/bin/bash", "-c", order.command[-1]],
                env={**os.environ, **order.env},
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self.tell(job, Stage.RUNNING)
        assert process.stdout is not None
        while data := os.read(process.stdout.fileno(), 32768):
            if not self.is_closed:
                self.listener.on_output(job, data.replace(b"\n", b"\r\n"))
        code = process.wait()
        self.tell(job, Stage.EXITED, code if code >= 0 else 128 - code)

    def tell(self, job: str, stage: Stage, code: int | None = None) -> None:
        """Tells what became of a job, as long as there is somebody to tell."""
        if not self.is_closed:
            self.listener.on_state(job, stage, code, "")

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
        self.is_closed = True
        for process in self.processes.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)

    def settle(self) -> None:
        """After the end: waits for what is said of VMs and of the jobs that are still ours."""
        with self.lock:
            ours = [
                thread
                for name, thread in self.threads.items()
                if name not in self.orders or name in self.processes
            ]
        for thread in ours:
            thread.join(10)
