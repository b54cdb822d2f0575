"""The runner of a run's VM: takes jobs from the host one after another, and tells it all that becomes of them.

Only a VM whose measured app-compose says `"runner": "jobs"` has one; elsewhere there is no such API.  The host's calls
come to the agent, which hands them to the runner's socket; the runner's reports go out as any call to the host, so
both kinds of channel carry them.  Every report is answered, output with the offset that the host wants next: what a
restarted host has missed is told again.  Source: runs.md section 7.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import socket
import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core.errors import CasemateError, Conflict
from core.messages import (
    MAX_OUTPUT,
    JobName,
    JobOrder,
    JobReport,
    JobStop,
    Order,
    Report,
    StopOrder,
)
from core.prpc import Empty, Service, instance
from guest import channel, job_logs, processes
from guest.channel import Asks, Lines
from guest.job import CONTAINER, PODMAN, Job, remove_container
from guest.job_room import Room
from guest.job_ssh import Landing, Sshd
from guest.settings import DATA_MOUNT, RUNNER_SOCKET, Settings

logger = logging.getLogger(__name__)

# The runner of an app-compose.
NAME = "jobs"
CALL_S = 3.0
# A host that restarts, or has no room, is asked again after this long.
RETRY_S = 0.5
# Between two pieces of output, so that other words get through, and small pieces become one.
PAUSE_S = 0.1
# The host hears of a silent runner this often.
ALIVE_S = 5.0


class Runner:
    """Has one job at a time, in a folder of the data disk.

    Without `ssh` nobody can attach; without `room` jobs write to the guest's own files.
    """

    def __init__(
        self,
        folder: Path,
        host: Asks | None,
        *,
        room: Room | None = None,
        ssh: Sshd | None = None,
        start_engine: Callable[[], None] = lambda: None,
    ) -> None:
        self._folder = folder
        self._room = room
        self.ssh = ssh
        self._start_engine = start_engine
        self._has_engine = False
        self._lock = threading.Lock()
        # Held by whoever makes a job's place or takes it away.
        self._place = threading.Lock()
        self.changed = threading.Condition()
        self.job: Job | None = None
        self._reporter = Reporter(host, self.changed, self._inactive_s)
        self._last_login = time.monotonic()
        self.service = Service("Runner")
        self.service.method("SubmitJob", JobOrder, Empty)(self.submit)
        self.service.method("StopJob", JobStop, Empty)(self.stop)
        self.service.method("ReleaseJob", JobName, Empty)(lambda given: self.release(given["id"]))

    def start(self) -> None:
        """Begins to tell the host."""
        self._reporter.start()

    def answer(self, method: str, params: object) -> object:
        """Answers one call of the host."""
        return self.service.find(method).call(params) or {}

    # The host's calls ----------------------------------------------------------------------------

    def submit(self, order: Order) -> None:
        """Begins a job; one that is known already is told of again, from the order's offset on.

        Conflict while another job runs.
        """
        with self._lock:
            if self.job is not None and self.job.order.id == order.id:
                self._reporter.follow(self.job, order.offset)
                return
            if self.job is not None and not self.job.is_over:
                raise Conflict("another job runs in this VM")
            self.job = Job(order, self._folder / "files", self._room, self.changed)
            self._last_login = time.monotonic()
            self._reporter.follow(self.job, 0)
            threading.Thread(target=self._run, args=(self.job,), name="job", daemon=True).start()

    def stop(self, order: StopOrder) -> None:
        """Asks the job to end; one that is not ours, or over, stays as it is."""
        if self.job is not None and self.job.order.id == order.id:
            self.job.stop(order.grace_s)

    def release(self, job_id: str) -> None:
        """Wipes what a job that is over left behind; its output stays for those attached, until the next job."""
        job = self.job
        if job is not None and job.order.id == job_id and job.is_over:
            self._reporter.follow(None, 0)
            threading.Thread(target=self._wipe_after, args=(job,), name="wipe", daemon=True).start()

    # Steps ---------------------------------------------------------------------------------------

    def _run(self, job: Job) -> None:
        with self._place:
            job.run(lambda: self._prepare(job))

    def _prepare(self, job: Job) -> None:
        if self.ssh is not None:
            self.ssh.stop()
        self._wipe()
        shutil.rmtree(self._folder / "files", ignore_errors=True)
        job.folder.mkdir(mode=0o700, parents=True)
        if job.order.image and not self._has_engine:
            # The agent shows its containers through it; jobs without an image do not pay for it.
            self._start_engine()
        self._has_engine |= bool(job.order.image)
        if self._room is not None and not job.order.image:
            self._room.make()
        if self.ssh is not None and job.order.authorized_keys:
            self.ssh.start(job.order.authorized_keys, self._landing(job))
        job.say("the VM is ready for the job")

    def _landing(self, job: Job) -> Landing:
        if job.order.image:
            return Landing({"HOME": "/root"}, (PODMAN, "exec", CONTAINER))
        root = str(self._room.root) if self._room else ""
        return Landing(job.environment(), (), root, job.working_dir(), job.account())

    def _wipe_after(self, job: Job) -> None:
        with self._place:
            if self.job is job:
                try:
                    self._wipe()
                except OSError as error:
                    # The next job meets the same, and says so to its owner.
                    logger.warning("not wiped: %s", error)

    def _wipe(self) -> None:
        """Ends every process of the last job and takes its room away."""
        keep = self.ssh.pids if self.ssh is not None else set()
        if self._room is None:
            return
        if self._has_engine:
            remove_container()
        kept = keep.union(*(processes.descendants(pid) for pid in keep))
        processes.kill(processes.descendants(os.getpid()) - kept)
        processes.bury_orphans(keep)
        self._room.wipe()

    def _inactive_s(self) -> int:
        if self.ssh is not None and self.ssh.logins():
            self._last_login = time.monotonic()
        return int(time.monotonic() - self._last_login)


class Reporter:
    """Tells the host the steps and the output of a job, each until the host has taken it."""

    def __init__(
        self, host: Asks | None, changed: threading.Condition, inactive_s: Callable[[], int]
    ) -> None:
        self._host = host
        self._changed = changed
        self._inactive_s = inactive_s
        self._job: Job | None = None
        self._told = 0  # steps
        self._sent = 0  # bytes
        # Changes with every order to begin anew: an answer to what was told before counts no more.
        self._order = 0
        self._spoke = -ALIVE_S

    def start(self) -> None:
        """Tells in a thread of its own for as long as this process lives."""
        if self._host is not None:
            threading.Thread(target=self._run, name="reports", daemon=True).start()

    def follow(self, job: Job | None, offset: int) -> None:
        """Tells of this job from now on: all of its steps, its output from `offset`."""
        with self._changed:
            self._job, self._told, self._sent = job, 0, offset
            self._order += 1
            self._changed.notify_all()

    def _run(self) -> None:
        pause_s = RETRY_S
        while True:
            order, report = self._next()
            try:
                self._tell(order, report)
                pause_s = RETRY_S
            except (CasemateError, OSError) as error:
                logger.info("the host did not take a report: %s", error)
                time.sleep(pause_s)
                pause_s = min(2 * pause_s, ALIVE_S)
            except Exception:
                # Nobody else would tell the host that its job has ended.
                logger.exception("a report failed")
                time.sleep(ALIVE_S)

    def _next(self) -> tuple[int, Report]:
        with self._changed:
            silent_s = time.monotonic() - self._spoke
            self._changed.wait_for(self._has_news, max(0.0, ALIVE_S - silent_s))
            job, order, offset = self._job, self._order, self._sent
            if job is None:
                return order, Report(stage="alive")
            size = job.size
            # All output goes before the end.
            step = job.steps[self._told] if self._told < len(job.steps) else None
            if step is not None and not (step.ends and offset < size):
                report = Report(job.order.id, step.stage, step.exit_status, step.message, offset)
                return order, report
        if offset < size:
            return order, Report(job.order.id, offset=offset, data=_piece(job.output, offset))
        return order, Report(job.order.id, "alive", inactive_s=self._inactive_s(), offset=offset)

    def _has_news(self) -> bool:
        job = self._job
        return job is not None and (self._told < len(job.steps) or self._sent < job.size)

    def _tell(self, order: int, report: Report) -> None:
        assert self._host is not None  # the thread runs with one alone
        message: dict[str, Any] = instance(JobReport).dump(report)
        answer = self._host.call("Job", message, CALL_S)
        with self._changed:
            self._spoke = time.monotonic()
            if self._order != order or self._job is None:
                return
            if report.stage not in ("", "alive"):
                self._told += 1
            wanted = answer.get("offset") if isinstance(answer, Mapping) else None
            if report.data and isinstance(wanted, int):
                self._sent = max(0, min(wanted, self._job.size))
        if report.data:
            time.sleep(PAUSE_S)


def _piece(path: Path, offset: int) -> bytes:
    with open(path, "rb") as output:
        output.seek(offset)
        return output.read(MAX_OUTPUT)


def serve(runner: Runner, listening: socket.socket) -> None:
    """Answers the agent on a socket for ever, one connection after another."""
    while True:
        connection, _ = listening.accept()
        with connection, contextlib.suppress(OSError):
            connection.settimeout(CALL_S)
            lines = Lines(channel.MAX_REQUEST)
            while data := connection.recv(64 * 1024):
                for line in lines.feed(data):
                    connection.sendall(channel.respond(line, runner.answer))


def run(settings: Settings, start_engine: Callable[[], None], *, has_ssh: bool) -> None:
    """The runner of a real VM; does not return."""
    processes.adopt_orphans()
    runner = Runner(
        DATA_MOUNT / "job",
        channel.host(settings),
        room=Room(DATA_MOUNT / "room"),
        ssh=Sshd(settings.state) if has_ssh else None,
        start_engine=start_engine,
    )
    job_logs.LogServer(job_logs.listen(), lambda: runner.job).start()
    path = settings.state / RUNNER_SOCKET
    with socket.socket(socket.AF_UNIX) as listening:
        path.unlink(missing_ok=True)
        listening.bind(os.fspath(path))
        path.chmod(0o600)
        listening.listen()
        runner.start()
        if runner.ssh is not None:
            # Drawn while nobody waits for it.
            threading.Thread(target=runner.ssh.make_key, daemon=True).start()
        serve(runner, listening)
