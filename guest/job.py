"""One job of a run: its process, or its container, on a terminal, its output in a file, and how it ended."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pty
import select
import shlex
import threading
import time
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from core import files
from core.errors import CasemateError, Invalid, Upstream
from core.messages import Order
from core.proc import CLEAN_ENV, CommandFailed, Started, run, start, start_on_terminal, stop
from guest import processes
from guest.job_room import LENT, LIBRARIES, Account, Room, entrance

logger = logging.getLogger(__name__)

# The stages of runs/executor.py.
PULLING, RUNNING, EXITED, FAILED = "pulling", "running", "exited", "failed"
NOTE = "note"

PODMAN = "/usr/bin/podman"
PODMAN_ENV = {"HOME": "/root"}
# Images of these names lie in the root file system and are never fetched.
LOCAL = "localhost/"
CONTAINER = "job"
VOLUME = "job-folder"
PULL_S = 3600.0
# podman's own failure, before there was a container (podman-run(1), exit status).
PODMAN_FAILED = 125
SIGTERM_STATUS = 128 + 15
READ_SIZE = 64 * 1024
# How long a terminal is silent before nothing more is expected of it, and the pause between two kills.
LOOK_S = 0.1
# What the terminal still holds is read for this long after the program's end.
DRAIN_S = 2.0
# How often the orphans of a job that ended are collected while it runs.
BURY_S = 5.0
# Attached clients ask for the output from a time on, to the second.
MARK_S = 1.0
MESSAGE_LIMIT = 1000
AGENT_SOCKET = "/var/run/dstack.sock"


@dataclass(frozen=True)
class Step:
    """Something that happened to a job; `ends` says that nothing follows."""

    stage: str
    exit_status: int | None = None
    message: str = ""

    @property
    def ends(self) -> bool:
        """Whether it is the last one."""
        return self.stage in (EXITED, FAILED)


@dataclass(frozen=True)
class Program:
    """What is started on the job's terminal."""

    argv: list[str]
    env: Mapping[str, str]
    enter: Callable[[], None]
    # None: its rights are ours, and so is its terminal.
    account: Account | None = None


class Job:
    """A job from its order to its end; `changed` is told of every step and every byte.

    `room` is where it runs when it has no image; None runs it in the guest's own files.
    """

    def __init__(
        self, order: Order, folder: Path, room: Room | None, changed: threading.Condition
    ) -> None:
        self.order = order
        self.folder = folder
        self.room = room
        self.changed = changed
        self.steps: list[Step] = []
        self.size = 0
        self._marks: list[tuple[float, int]] = []
        self._process: Started | None = None
        self._asked_to_end = False
        self._aborted = False

    @property
    def output(self) -> Path:
        """The file of what its terminal printed."""
        return self.folder / "output"

    @property
    def is_over(self) -> bool:
        """Whether it has ended and all its output is in the file."""
        return bool(self.steps) and self.steps[-1].ends

    def offset_at(self, moment: float) -> int:
        """Where in the output the first byte stands that was printed after a time (seconds since 1970)."""
        place = bisect_right(self._marks, (moment, self.size))
        return self._marks[place][1] if place < len(self._marks) else self.size

    def say(self, text: str) -> None:
        """Adds a line to the runner's own log of this job."""
        self._step(Step(NOTE, None, text[:MESSAGE_LIMIT]))

    # The job's life ------------------------------------------------------------------------------

    def run(self, prepare: Callable[[], None]) -> None:
        """The whole job, after `prepare` has made its place; returns when it is over."""
        try:
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            self._step(Step(PULLING))
            prepare()
            self._finish(self._perform(self._program()))
        except CasemateError as error:
            self._fail("creating_container_error", error.message)
        except OSError as error:
            self._fail(
                "executor_error", f"{error.filename or 'the guest'}: {error.strerror or error}"
            )
        except Exception as error:
            # Somebody waits for its end, whatever happened.
            logger.exception("job %s failed", self.order.id)
            self._fail("executor_error", f"internal error: {type(error).__name__}")

    def stop(self, grace_s: float) -> None:
        """Asks the job to end, and kills it after `grace_s` seconds; returns at once."""
        if self.is_over:
            return
        with self.changed:
            first, self._asked_to_end = not self._asked_to_end, True
            self._aborted |= grace_s == 0
            self.changed.notify_all()
        if first or self._aborted:
            self.say(f"asked to end within {grace_s:.0f} s")
            threading.Thread(
                target=self._end, args=(grace_s,), name="stop job", daemon=True
            ).start()

    def _end(self, grace_s: float) -> None:
        if grace_s:
            processes.ask_to_end(self._processes())
            with self.changed:
                self.changed.wait_for(lambda: self.is_over or self._aborted, grace_s)
        while not self.is_over:
            self._kill()
            with self.changed:
                self.changed.wait_for(lambda: self.is_over, LOOK_S)

    def _program(self) -> Program:
        if self._asked_to_end:
            raise Invalid("it was stopped before it began")
        if self.order.image:
            self._pull()
            return self._container()
        return self._command()

    def _perform(self, program: Program) -> int:
        ours, theirs = pty.openpty()
        # We keep their end as well: a program that lets go of its terminal must not be told that it hung up.
        with open(ours, "rb", buffering=0), open(theirs, "wb", buffering=0) as their_end:
            if program.account is not None and program.account.uid:
                os.fchown(theirs, program.account.uid, -1)
            process = start_on_terminal(program.argv, theirs, env=program.env, enter=program.enter)
            with self.changed:
                self._process = process
            self._step(Step(RUNNING))
            if self._asked_to_end:  # between the order to end and the start
                processes.ask_to_end(self._processes())
            try:
                self._record(ours, process)
                # As in a container: with the first process all others end.
                self._kill()
                their_end.close()
                self._drain(ours)
            except OSError:
                self._kill()
                raise
        return process.wait()

    def _record(self, terminal: int, process: Started) -> None:
        """Writes what the terminal prints to the file, until its program has ended."""
        poller = select.poll()
        poller.register(terminal, select.POLLIN)
        with open(self.output, "ab", buffering=0) as output, _watch_of(process) as end:
            poller.register(end, select.POLLIN)
            buried = time.monotonic()
            while process.poll() is None:
                if any(fd == terminal for fd, _ in poller.poll(BURY_S * 1000)):
                    self._keep(output, os.read(terminal, READ_SIZE))
                if self.room is not None and time.monotonic() - buried > BURY_S:
                    processes.bury_orphans({process.pid})
                    buried = time.monotonic()

    def _drain(self, terminal: int) -> None:
        """Writes what the terminal still holds, after its program has ended."""
        poller = select.poll()
        poller.register(terminal, select.POLLIN)
        deadline = time.monotonic() + DRAIN_S
        with open(self.output, "ab", buffering=0) as output:
            while time.monotonic() < deadline and poller.poll(LOOK_S * 1000):
                try:
                    data = os.read(terminal, READ_SIZE)
                except OSError:
                    return  # nobody has the terminal open any more
                self._keep(output, data)

    def _keep(self, output: FileIO, data: bytes) -> None:
        """Writes output and counts what is in the file: a disk that gets full takes a part."""
        rest = memoryview(data)
        while rest:
            written = output.write(rest)
            self._printed(written)
            rest = rest[written:]

    def _printed(self, size: int) -> None:
        with self.changed:
            now = time.time()
            if not self._marks or now - self._marks[-1][0] >= MARK_S:
                self._marks.append((now, self.size))
            self.size += size
            self.changed.notify_all()

    def _finish(self, code: int) -> None:
        if self.order.image and code == PODMAN_FAILED and not self._asked_to_end:
            self._fail("creating_container_error", self._last_words())
            return
        status = 128 - code if code < 0 else code
        self._step(Step(EXITED, status))

    def _fail(self, reason: str, why: str) -> None:
        if self._asked_to_end:
            self._step(Step(EXITED, SIGTERM_STATUS))
        else:
            self._step(Step(FAILED, None, f"{reason}: {why}"[:MESSAGE_LIMIT]))

    def _last_words(self) -> str:
        with open(self.output, "rb") as output:
            output.seek(max(0, self.size - 2 * MESSAGE_LIMIT))
            return last_line(output.read().decode(errors="replace"))

    def _step(self, step: Step) -> None:
        with self.changed:
            if not self.is_over:  # a note may come late
                self.steps.append(step)
                self.changed.notify_all()

    # Its processes -------------------------------------------------------------------------------

    def _processes(self) -> set[int]:
        inside = container_processes() if self.order.image else set()
        if inside or self._process is None:
            return inside
        return processes.session(self._process.pid)

    def _kill(self) -> None:
        if self.order.image:
            remove_container()
        if self._process is not None:
            processes.kill(processes.session(self._process.pid))

    # A process of the guest ----------------------------------------------------------------------

    def account(self) -> Account:
        """Who the job is, when it has no image."""
        return Account.find(self.order.user or "0")

    def environment(self) -> dict[str, str]:
        """The variables of the job's processes, when it has no image."""
        account = self.account()
        return {
            **CLEAN_ENV,
            "TERM": "xterm-256color",
            "HOME": self.order.home_dir or account.home,
            "USER": account.name,
            **self.variables(),
        }

    def variables(self) -> dict[str, str]:
        """What the order sets; Invalid names a variable that cannot be set."""
        for each in self.order.env:
            if not each["name"] or "=" in each["name"]:
                raise Invalid.field("env", f"{each['name'][:64]!r} is no name of a variable")
        return {each["name"]: each["value"] for each in self.order.env}

    def working_dir(self) -> str:
        """Where its processes start, when it has no image."""
        folder = self.order.working_dir or self.order.home_dir or self.account().home
        if not folder.startswith("/"):
            raise Invalid.field("working_dir", "must be absolute")
        return folder

    def _command(self) -> Program:
        if not self.order.command:
            raise Invalid.field("commands", "a job without an image needs a command")
        account = self.account()
        root = str(self.room.root) if self.room else ""
        enter = entrance(root, account, self.working_dir())
        return Program(list(self.order.command), self.environment(), enter, account)

    # A container ---------------------------------------------------------------------------------

    def _pull(self) -> None:
        name = self.order.image
        if name.startswith(LOCAL):
            return
        self.say(f"pulling {name}")
        authority: list[str] = []
        if self.order.registry_username:
            authority = ["--authfile", str(self._credentials())]
        began, log = time.monotonic(), self.folder / "pull"
        try:
            pull = start([PODMAN, "pull", "--quiet", *authority, name], env=PODMAN_ENV, log=log)
            self._wait_for_pull(pull)
        finally:
            self._credentials_file.unlink(missing_ok=True)
        if pull.returncode:
            why = last_line(log.read_text(errors="replace")).removeprefix("Error: ")
            raise Upstream(f"{name} was not pulled: {why or 'it took too long'}")
        self.say(f"pulled {name} in {time.monotonic() - began:.1f} s")

    def _wait_for_pull(self, pull: Started) -> None:
        """Waits for an image; ends the pull when the job is asked to end, or it takes too long."""
        deadline = time.monotonic() + PULL_S
        while pull.poll() is None and time.monotonic() < deadline and not self._asked_to_end:
            with self.changed:
                self.changed.wait_for(lambda: self._asked_to_end, LOOK_S)
        stop(pull, patience_s=DRAIN_S)

    @property
    def _credentials_file(self) -> Path:
        return self.folder / "registry.json"

    def _credentials(self) -> Path:
        """A registry's user and password where podman reads them: never in a command line."""
        from base64 import b64encode

        first, slash, _ = self.order.image.partition("/")
        is_host = slash and ("." in first or ":" in first or first == "localhost")
        pair = f"{self.order.registry_username}:{self.order.registry_password}"
        auth = {"auth": b64encode(pair.encode()).decode()}
        auths = {first if is_host else "docker.io": auth}
        files.write_atomic(self._credentials_file, json.dumps({"auths": auths}))
        return self._credentials_file

    def _container(self) -> Program:
        order = self.order
        argv = [PODMAN, "run", "--tty", "--name", CONTAINER, "--network", "host", "--init"]
        argv += ["--pull", "never", "--env-file", str(self._env_file())]
        if os.path.exists(AGENT_SOCKET):
            argv += ["--volume", f"{AGENT_SOCKET}:{AGENT_SOCKET}"]
        if order.authorized_keys:
            argv += ["--volume", f"{LIBRARIES}:{LENT}:ro"]
        if order.working_dir:
            # A volume takes what the image has there, and is made where it has nothing.
            argv += ["--volume", f"{VOLUME}:{order.working_dir}", "--workdir", order.working_dir]
        argv += ["--user", order.user] if order.user else []
        argv += ["--privileged"] if order.privileged else []
        if order.entrypoint:
            argv += ["--entrypoint", json.dumps(shlex.split(order.entrypoint))]
        several = {name: value for name, value in self.variables().items() if "\n" in value}
        for name in several:
            argv += ["--env", name]
        env = {**several, **CLEAN_ENV, **PODMAN_ENV, "TERM": "xterm-256color"}
        return Program([*argv, order.image, *order.command], env, lambda: None)

    def _env_file(self) -> Path:
        """The variables as podman reads them; those of several lines come from its own environment."""
        lines = [
            f"{name}={value}\n" for name, value in self.variables().items() if "\n" not in value
        ]
        path = self.folder / "env"
        files.write_atomic(path, "".join(lines))
        return path


def _watch_of(process: Started) -> FileIO:
    """A file that can be read as soon as a program has ended."""
    return open(os.pidfd_open(process.pid), "rb", buffering=0)


def last_line(text: str) -> str:
    """The last line of a text that is not empty, or ""."""
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


def container_processes() -> set[int]:
    """The processes of the job's container; empty when there is none."""
    try:
        shown = run(
            [PODMAN, "inspect", "--format", "{{.State.Pid}}", CONTAINER], timeout_s=20
        ).stdout
        group = Path(f"/proc/{int(shown)}/cgroup").read_text().strip().rpartition(":")[2]
        lists = list(Path(f"/sys/fs/cgroup{group}").rglob("cgroup.procs"))
        return {int(pid) for each in lists for pid in each.read_text().split()}
    except (CommandFailed, OSError, ValueError):
        return set()


def remove_container() -> None:
    """Kills and deletes the job's container with its volume, if there is one."""
    for argv in (["rm", "--force", "--time", "0", CONTAINER], ["volume", "rm", "--force", VOLUME]):
        with contextlib.suppress(CommandFailed):
            run([PODMAN, *argv], env=PODMAN_ENV, timeout_s=60)
