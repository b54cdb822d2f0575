"""What executes jobs in VMs: the orders a scheduler gives, what it is told back, and the channel to the guest's runner."""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Protocol

from attest import compose
from core import messages, prpc
from core.errors import (
    CasemateError,
    Invalid,
    NotFound,
    Unavailable,
    Unsupported,
    Upstream,
)
from core.messages import MAX_OUTPUT, Report
from core.prpc import Empty
from vmm.service import Vms

logger = logging.getLogger(__name__)

# What a measured app-compose says to get the runner of guest/runner.py, and that runner's further stages.
RUNNER = "jobs"
NOTE, ALIVE = "note", "alive"
MESSAGE_LIMIT = 1000
# Of one job; a runner of ours has a handful.
NOTES_MOST = 1000
# Why a guest may say that a job never ran: the other reasons of runs/lifecycle.py are for the host to give.
GUEST_REASONS = ("creating_container_error", "executor_error")
EXIT_STATUS_MOST = 255
# What a guest reads as one line, less what stands around it.
ORDER_LIMIT = 1000 * 1024
# A runner that did not take a call is asked again after this long.
AGAIN_S = 1.0
# How long the end of a VM may go unnoticed.
LOOK_S = 1.0
# The words of vmm/lifecycle.py for a VM that is not there.
ENDED = ("exited", "stopped", "removing")


class Stage(StrEnum):
    """How far a runner is with a job; the last two end it."""

    PULLING = "pulling"  # the guest has the order and gets the image ready
    RUNNING = "running"
    EXITED = "exited"  # with an exit status (128 + signal)
    FAILED = "failed"  # never ran, or cannot be told; `message` begins with a reason of runs/lifecycle.py and ": "


@dataclass(frozen=True)
class JobOrder:
    """One submission of one job, whole: all that a runner needs."""

    submission_id: str
    run_name: str
    job_name: str
    # "": a plain process of the guest.
    image: str
    # The argument vector; empty with an image: its own.
    command: tuple[str, ...]
    entrypoint: str
    env: Mapping[str, str] = field(repr=False)
    user: str  # "": root, or the image's own
    working_dir: str  # absolute; "": the home directory
    home_dir: str
    privileged: bool
    # Guest ports that are opened on the host for this job alone (the service's port).
    ports: tuple[int, ...]
    authorized_keys: tuple[str, ...]
    # User name and password of the image's registry.
    registry_auth: tuple[str, str] | None = field(default=None, repr=False)
    # Bytes of output that the host has already: the guest goes on from there.
    output_offset: int = 0


ENDS = (Stage.EXITED, Stage.FAILED)


class Executor(Protocol):
    """Runs orders in VMs; every call returns at once, may be repeated, and survives a restart of either side."""

    def prepare(self, name: str, *, ssh: bool) -> str:
        """The app-compose text of a VM that takes jobs."""

    def submit(self, vm_id: str, order: JobOrder) -> None:
        """Starts a job in a VM, which may still boot; a job that was submitted before is taken up again."""

    def stop(self, vm_id: str, submission_id: str, grace_s: int) -> None:
        """Asks a job to end: SIGTERM, after `grace_s` SIGKILL (0: at once)."""

    def release(self, vm_id: str, submission_id: str) -> None:
        """Forgets a job that has ended and wipes what it left in the VM."""

    def is_ready(self, vm_id: str) -> bool:
        """Whether the runner of a VM has spoken since it was submitted to, or watched."""

    def watch(self, vm_id: str) -> None:
        """Keeps a connection to the runner of a VM without a job."""

    def forget(self, vm_id: str) -> None:
        """Closes the connection to a VM that is on its way out."""

    def close(self) -> None:
        """Ends all threads; jobs run on."""


class Listener(Protocol):
    """The scheduler as an executor sees it; called from the executor's threads."""

    def on_state(
        self, submission_id: str, stage: Stage, exit_status: int | None, message: str
    ) -> None:
        """A job came to a stage; the same one may be told again.  All output before an end was given before."""

    def on_output(self, submission_id: str, data: bytes) -> None:
        """The next bytes of a job's terminal, at the order's offset or where the last ones ended."""

    def on_diagnosis(self, submission_id: str, text: str) -> None:
        """A line of the runner's own log of a job."""

    def on_inactive(self, submission_id: str, seconds: int) -> None:
        """For how long nobody has been connected to a job over SSH."""

    def on_ready(self, vm_id: str) -> None:
        """The runner of a VM answers."""

    def on_lost(self, vm_id: str, message: str) -> None:
        """The runner of a VM cannot be spoken to any more, for good."""


@dataclass
class _Held:
    """A job that was submitted and not released."""

    vm_id: str
    order: JobOrder
    # Bytes of its output that were given to the listener.
    offset: int
    is_over: bool = False
    notes: int = 0
    # What the guest says of one job is taken in turn.
    lock: threading.Lock = field(default_factory=threading.Lock)


class VmExecutor:
    """The executor of this host's VMs: orders go over their channel, and what their runners report comes in `heard`.

    Nothing of it lasts: after a restart of the service the scheduler watches and submits again, and the guests tell
    what was missed.
    """

    def __init__(self, vms: Vms, listener: Listener) -> None:
        self._vms = vms
        self._listener = listener
        self._changed = threading.Condition()
        self._held: dict[str, _Held] = {}
        # Every VM that is watched, and whether its runner has spoken.
        self._ready: dict[str, bool] = {}
        self._looker: threading.Thread | None = None
        self._closed = False

    # The scheduler's orders -----------------------------------------------------------------------

    def prepare(self, name: str, *, ssh: bool) -> str:
        """The app-compose text of a VM that takes jobs: the same for all of them but for the name."""
        return compose.text_of(compose.new(name) | {"runner": RUNNER, "runner_ssh": ssh})

    def submit(self, vm_id: str, order: JobOrder) -> None:
        """Starts a job in a VM as soon as its runner speaks, or takes up one that was submitted before."""
        with self._changed:
            self._held[order.submission_id] = _Held(vm_id, order, order.output_offset)
        self.watch(vm_id)
        self._begin(self._submit, order.submission_id)

    def stop(self, vm_id: str, submission_id: str, grace_s: int) -> None:
        """Asks a job to end: SIGTERM, after `grace_s` SIGKILL (0: at once)."""
        params = {"id": submission_id, "grace_s": grace_s}
        self._begin(self._call, vm_id, submission_id, "StopJob", params)

    def release(self, vm_id: str, submission_id: str) -> None:
        """Forgets a job that has ended, closes its ports, and wipes what it left in the VM."""
        with self._changed:
            held = self._held.pop(submission_id, None)
        self._begin(self._release, vm_id, submission_id, held.order.ports if held else ())

    def is_ready(self, vm_id: str) -> bool:
        """Whether the runner of a VM has spoken since it was submitted to, or watched."""
        with self._changed:
            return self._ready.get(vm_id, False)

    def watch(self, vm_id: str) -> None:
        """Listens to the runner of a VM, and notices the VM's end."""
        with self._changed:
            self._ready.setdefault(vm_id, False)
            if self._looker is None:
                self._looker = threading.Thread(target=self._look, name="executor", daemon=True)
                self._looker.start()

    def forget(self, vm_id: str) -> None:
        """Listens to a VM no more, and drops its jobs."""
        with self._changed:
            self._ready.pop(vm_id, None)
            self._held = {key: held for key, held in self._held.items() if held.vm_id != vm_id}
            self._changed.notify_all()

    def close(self) -> None:
        """Ends all threads; jobs run on."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    # What guests say ------------------------------------------------------------------------------

    def heard(self, vm_id: str, report: Report) -> int:
        """Takes a report of a VM's runner; answers from which byte on the output of the job is wanted.

        Unavailable, upon which it is told again, while nobody watches the VM or knows the job; Invalid for what no
        runner of ours says.
        """
        if len(report.data) > MAX_OUTPUT:
            raise Invalid.field("data", f"must have at most {MAX_OUTPUT} bytes")
        with self._changed:
            known = self._ready.get(vm_id)
            held = self._held.get(report.id)
        if known is None:
            raise Unavailable("nobody watches this VM")
        if not known:
            self._is_there(vm_id)
        if not report.id:
            return 0
        if held is None or held.vm_id != vm_id:
            raise Unavailable("this job is not known yet")
        with held.lock:
            self._take(held, report)
            return held.offset

    def _is_there(self, vm_id: str) -> None:
        self._listener.on_ready(vm_id)
        with self._changed:
            if vm_id in self._ready:
                self._ready[vm_id] = True
                self._changed.notify_all()

    def _take(self, held: _Held, report: Report) -> None:
        name = report.id
        if held.is_over:
            return  # a runner of ours says nothing new
        if report.data:
            self._take_output(held, report)
        elif report.stage == NOTE:
            held.notes += 1
            if held.notes <= NOTES_MOST:
                self._listener.on_diagnosis(name, report.message[:MESSAGE_LIMIT])
        elif report.stage == ALIVE:
            self._listener.on_inactive(name, report.inactive_s)
        else:
            stage, message = _stage(report), _message_of(report)
            self._listener.on_state(name, stage, report.exit_status, message)
            # After the listener, who may fail: then it is told again.
            held.is_over |= stage in ENDS

    def _take_output(self, held: _Held, report: Report) -> None:
        if report.offset <= held.offset:
            new = report.data[held.offset - report.offset :]
            if new:
                self._listener.on_output(report.id, new)
                held.offset += len(new)

    # Steps ----------------------------------------------------------------------------------------

    def _begin(self, step: Callable[..., None], *args: object) -> None:
        threading.Thread(target=self._guarded, args=(step, *args), daemon=True).start()

    def _guarded(self, step: Callable[..., None], *args: object) -> None:
        try:
            step(*args)
        except Exception:  # a thread would swallow it without a word
            logger.exception("an order to a VM failed")

    def _submit(self, submission_id: str) -> None:
        held = self._held.get(submission_id)
        if held is None or not self._wait_until_ready(held.vm_id):
            return
        try:
            message = _message(held.order)
            for port in held.order.ports:
                self._vms.publish(held.vm_id, port)
        except Invalid as error:
            self._fail(submission_id, f"executor_error: {error.message}")
        except (Upstream, Unsupported, Unavailable) as error:
            self._fail(submission_id, f"ports_binding_failed: {error.message}")
        else:
            self._call(held.vm_id, submission_id, "SubmitJob", message)

    def _fail(self, submission_id: str, message: str) -> None:
        self._listener.on_state(submission_id, Stage.FAILED, None, message[:MESSAGE_LIMIT])

    def _release(self, vm_id: str, submission_id: str, ports: tuple[int, ...]) -> None:
        try:
            for port in ports:
                self._vms.withdraw(vm_id, port)
            self._vms.ask_guest(vm_id, "ReleaseJob", Empty, {"id": submission_id})
        except CasemateError as error:
            # The next job wipes all the same.
            logger.info("VM %s: job %s was not released: %s", vm_id, submission_id, error.message)

    def _call(self, vm_id: str, submission_id: str, method: str, params: dict[str, Any]) -> None:
        """Asks the runner of a VM until it takes the call, the job is over or nobody wants it any more."""
        while self._wait_until_ready(vm_id):
            held = self._held.get(submission_id)
            if held is None or held.is_over:
                return
            try:
                self._vms.ask_guest(vm_id, method, Empty, params)
                return
            except NotFound:
                return  # its end is noticed by whoever looks after it
            except CasemateError as error:
                logger.info("VM %s: %s: %s", vm_id, method, error.message)
            with self._changed:
                self._changed.wait(AGAIN_S)

    def _wait_until_ready(self, vm_id: str) -> bool:
        """Waits until a VM's runner speaks; False when it is watched no more."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._ready.get(vm_id, True))
            return not self._closed and vm_id in self._ready

    def _look(self) -> None:
        while True:
            with self._changed:
                if self._changed.wait_for(lambda: self._closed, LOOK_S):
                    return
                watched = list(self._ready)
            for vm_id in watched:
                self._guarded(self._look_after, vm_id)

    def _look_after(self, vm_id: str) -> None:
        if lost := self._end_of(vm_id):
            self.forget(vm_id)
            self._listener.on_lost(vm_id, lost)

    def _end_of(self, vm_id: str) -> str:
        """Why a VM's runner will speak no more; "" while it may."""
        info = self._vms.info(vm_id)
        if info is None:
            return "the VM was removed"
        if info["boot_error"]:
            return f"the boot failed: {info['boot_error']}"
        if info["status"] not in ENDED:
            return ""
        said = [each["body"] for each in info["events"] if each["event"] == "vmm.exit"]
        return said[-1] if said else f"the VM is {info['status']}"


def _stage(report: Report) -> Stage:
    """The stage that a report tells of; Invalid for what no runner of ours says."""
    if report.stage not in set(Stage):
        raise Invalid.field("stage", f"must be one of {', '.join(Stage)}, {NOTE} and {ALIVE}")
    if report.stage == Stage.EXITED and (report.exit_status or 0) > EXIT_STATUS_MOST:
        raise Invalid.field("exit_status", f"must be a number up to {EXIT_STATUS_MOST}")
    if (report.exit_status is None) == (report.stage == Stage.EXITED):
        raise Invalid.field("exit_status", "comes with the stage exited, and with no other")
    return Stage(report.stage)


def _message_of(report: Report) -> str:
    message = report.message
    if report.stage == Stage.FAILED and message.partition(": ")[0] not in GUEST_REASONS:
        message = f"executor_error: {message}"
    return message[:MESSAGE_LIMIT]


def _message(order: JobOrder) -> dict[str, Any]:
    """The request of SubmitJob; Invalid for an order that no guest would take."""
    user, password = order.registry_auth or ("", "")
    message = {
        "id": order.submission_id,
        "image": order.image,
        "entrypoint": order.entrypoint,
        "command": list(order.command),
        "env": [{"name": name, "value": value} for name, value in order.env.items()],
        "user": order.user,
        "working_dir": order.working_dir,
        "home_dir": order.home_dir,
        "privileged": order.privileged,
        "authorized_keys": list(order.authorized_keys),
        "registry_username": user,
        "registry_password": password,
        "offset": order.output_offset,
    }
    prpc.load(messages.JobOrder, message)
    if len(json.dumps(message)) > ORDER_LIMIT:
        raise Invalid(f"commands and variables of a job may have {ORDER_LIMIT} bytes together")
    return message
