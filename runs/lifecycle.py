"""The states of runs, jobs, instances and fleets, the one table of moves between them, and why they end (pure).

Source: runs.md section 2.  Nothing leaves `terminating` but for an end: a stop is never lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from enum import StrEnum


class Kind(StrEnum):
    """What has a state."""

    RUN = "run"
    JOB = "job"
    INSTANCE = "instance"
    FLEET = "fleet"


class Status(StrEnum):
    """The states; each kind has its own of them."""

    PENDING = "pending"
    SUBMITTED = "submitted"
    PROVISIONING = "provisioning"
    PULLING = "pulling"
    RUNNING = "running"
    IDLE = "idle"
    BUSY = "busy"
    ACTIVE = "active"
    TERMINATING = "terminating"
    TERMINATED = "terminated"
    ABORTED = "aborted"
    FAILED = "failed"
    DONE = "done"


S = Status
_ENDS = {S.TERMINATED, S.FAILED, S.DONE}
MOVES: Mapping[Kind, Mapping[Status, frozenset[Status]]] = {
    Kind.RUN: {
        S.PENDING: frozenset({S.SUBMITTED, S.TERMINATING}),
        S.SUBMITTED: frozenset({S.PROVISIONING, S.RUNNING, S.PENDING, S.TERMINATING}),
        S.PROVISIONING: frozenset({S.RUNNING, S.SUBMITTED, S.PENDING, S.TERMINATING}),
        S.RUNNING: frozenset({S.SUBMITTED, S.PROVISIONING, S.PENDING, S.TERMINATING}),
        S.TERMINATING: frozenset(_ENDS),
    },
    Kind.JOB: {
        S.SUBMITTED: frozenset({S.PROVISIONING, S.TERMINATING}),
        S.PROVISIONING: frozenset({S.PULLING, S.RUNNING, S.TERMINATING}),
        S.PULLING: frozenset({S.RUNNING, S.TERMINATING}),
        S.RUNNING: frozenset({S.TERMINATING}),
        S.TERMINATING: frozenset(_ENDS | {S.ABORTED}),
    },
    Kind.INSTANCE: {
        S.PENDING: frozenset({S.PROVISIONING, S.TERMINATING}),
        S.PROVISIONING: frozenset({S.IDLE, S.BUSY, S.TERMINATING}),
        S.IDLE: frozenset({S.BUSY, S.TERMINATING}),
        S.BUSY: frozenset({S.IDLE, S.TERMINATING}),
        S.TERMINATING: frozenset({S.TERMINATED}),
    },
    Kind.FLEET: {
        S.SUBMITTED: frozenset({S.ACTIVE, S.TERMINATING}),
        S.ACTIVE: frozenset({S.TERMINATING}),
        S.TERMINATING: frozenset({S.TERMINATED}),
    },
}


def may_move(kind: Kind, before: str, after: str) -> bool:
    """Whether the table has a move."""
    return after in MOVES[kind].get(Status(before), frozenset())


def is_finished(kind: Kind, status: str) -> bool:
    """Whether nothing more happens to a thing in this state."""
    return status not in MOVES[kind]


def unfinished(kind: Kind) -> list[str]:
    """The states in which something may still happen."""
    return list(MOVES[kind])


class Reason(StrEnum):
    """Why a run or a job ended."""

    # Of runs.
    ALL_JOBS_DONE = "all_jobs_done"
    JOB_FAILED = "job_failed"
    RETRY_LIMIT_EXCEEDED = "retry_limit_exceeded"
    STOPPED_BY_USER = "stopped_by_user"
    ABORTED_BY_USER = "aborted_by_user"
    SERVER_ERROR = "server_error"
    # Of jobs.
    DONE_BY_RUNNER = "done_by_runner"
    CONTAINER_EXITED_WITH_ERROR = "container_exited_with_error"
    CREATING_CONTAINER_ERROR = "creating_container_error"
    EXECUTOR_ERROR = "executor_error"
    PORTS_BINDING_FAILED = "ports_binding_failed"
    LOG_QUOTA_EXCEEDED = "log_quota_exceeded"
    NO_CAPACITY = "failed_to_start_due_to_no_capacity"
    INSTANCE_UNREACHABLE = "instance_unreachable"
    WAITING_INSTANCE_LIMIT_EXCEEDED = "waiting_instance_limit_exceeded"
    WAITING_RUNNER_LIMIT_EXCEEDED = "waiting_runner_limit_exceeded"
    TERMINATED_BY_USER = "terminated_by_user"
    TERMINATED_BY_SERVER = "terminated_by_server"
    SCALED_DOWN = "scaled_down"
    INACTIVITY_DURATION_EXCEEDED = "inactivity_duration_exceeded"
    MAX_DURATION_EXCEEDED = "max_duration_exceeded"


R = Reason
_RUN_ENDS: Mapping[str, Status] = {
    R.ALL_JOBS_DONE: S.DONE,
    R.JOB_FAILED: S.FAILED,
    R.RETRY_LIMIT_EXCEEDED: S.FAILED,
    R.SERVER_ERROR: S.FAILED,
    R.STOPPED_BY_USER: S.TERMINATED,
    R.ABORTED_BY_USER: S.TERMINATED,
}
_JOB_ENDS: Mapping[str, Status] = {
    R.DONE_BY_RUNNER: S.DONE,
    R.TERMINATED_BY_USER: S.TERMINATED,
    R.TERMINATED_BY_SERVER: S.TERMINATED,
    R.SCALED_DOWN: S.TERMINATED,
    R.INACTIVITY_DURATION_EXCEEDED: S.TERMINATED,
    R.MAX_DURATION_EXCEEDED: S.TERMINATED,
    R.ABORTED_BY_USER: S.ABORTED,
}
# What a retry policy calls the reasons it covers; the rest of those that fail a job are errors.
_CAPACITY = {R.NO_CAPACITY}
_INTERRUPTIONS = {R.INSTANCE_UNREACHABLE, R.WAITING_INSTANCE_LIMIT_EXCEEDED}


def end_of_run(reason: str) -> Status:
    """The state in which a run ends for a reason."""
    return _RUN_ENDS[reason]


def end_of_job(reason: str) -> Status:
    """The state in which a job ends for a reason."""
    return _JOB_ENDS.get(reason, S.FAILED)


def retry_event(reason: str | None) -> str | None:
    """What a retry policy calls the failure of a job; None when it is no failure."""
    if reason is None or end_of_job(reason) is not S.FAILED:
        return None
    if reason in _CAPACITY:
        return "no-capacity"
    return "interruption" if reason in _INTERRUPTIONS else "error"


def state_of_run(jobs: Iterable[str]) -> Status:
    """The state that a run which is not ending has by the states of its jobs."""
    states = set(jobs)
    if S.RUNNING in states:
        return S.RUNNING
    return S.PROVISIONING if states & {S.PROVISIONING, S.PULLING} else S.SUBMITTED


def job_message(status: str, reason: str | None, exit_status: int | None, message: str) -> str:
    """How a list shows a job."""
    if status == S.DONE:
        return "exited (0)"
    if reason == R.CONTAINER_EXITED_WITH_ERROR and status == S.FAILED:
        return f"exited ({exit_status})"
    if reason == R.NO_CAPACITY and status == S.FAILED:
        return NO_FLEETS if message.startswith(NO_FLEETS) else "no capacity"
    if reason == R.INSTANCE_UNREACHABLE and status == S.FAILED:
        return "interrupted"
    if status == S.FAILED:
        return "error"
    if status == S.TERMINATED and reason == R.TERMINATED_BY_USER:
        return "stopped"
    return str(status)


# Begins the message of a job for which no fleet of its project would do.
NO_FLEETS = "no fleets"
# Reasons that the state's word does not tell.
_UNTOLD = {
    R.EXECUTOR_ERROR, R.CREATING_CONTAINER_ERROR, R.INSTANCE_UNREACHABLE, R.PORTS_BINDING_FAILED,
    R.WAITING_INSTANCE_LIMIT_EXCEEDED, R.WAITING_RUNNER_LIMIT_EXCEEDED, R.LOG_QUOTA_EXCEEDED,
    R.MAX_DURATION_EXCEEDED, R.INACTIVITY_DURATION_EXCEEDED, R.SCALED_DOWN,
}  # fmt: skip
_UNTOLD_OF_RUNS = {R.RETRY_LIMIT_EXCEEDED, R.SERVER_ERROR}


def job_error(reason: str | None) -> str | None:
    """What a list says of the reason of a job's end, where the state does not say it."""
    return reason.replace("_", " ") if reason in _UNTOLD else None


def run_error(reason: str | None) -> str | None:
    """The same for a run."""
    return reason.replace("_", " ") if reason in _UNTOLD_OF_RUNS else None
