"""What executes jobs in VMs: the orders a scheduler gives, what it is told back, and the channel to the guest's runner."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol


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
