"""The table of moves, and the words for ends."""

from __future__ import annotations

import pytest

from runs import lifecycle
from runs.lifecycle import MOVES, Kind, Reason, Status


@pytest.mark.parametrize("kind", list(Kind))
def test_nothing_leaves_terminating_but_for_an_end(kind: Kind) -> None:
    for after in MOVES[kind][Status.TERMINATING]:
        assert lifecycle.is_finished(kind, after), after


@pytest.mark.parametrize("kind", list(Kind))
def test_everything_can_be_ended_and_ends_are_final(kind: Kind) -> None:
    for before, after in MOVES[kind].items():
        assert before is Status.TERMINATING or Status.TERMINATING in after
        assert not lifecycle.is_finished(kind, before)
    ends = {end for after in MOVES[kind].values() for end in after} - set(MOVES[kind])
    assert all(not lifecycle.may_move(kind, end, after) for end in ends for after in Status)


def test_a_stopped_run_never_runs_again() -> None:
    assert not lifecycle.may_move(Kind.RUN, "terminating", "running")
    assert not lifecycle.may_move(Kind.JOB, "terminating", "running")
    assert not lifecycle.may_move(Kind.JOB, "running", "done")


def test_every_reason_leads_to_an_end() -> None:
    assert lifecycle.end_of_run(Reason.STOPPED_BY_USER) is Status.TERMINATED
    assert lifecycle.end_of_run(Reason.JOB_FAILED) is Status.FAILED
    for reason in Reason:
        assert lifecycle.is_finished(Kind.JOB, lifecycle.end_of_job(reason))


@pytest.mark.parametrize(
    ("reason", "event"),
    [
        (Reason.NO_CAPACITY, "no-capacity"),
        (Reason.INSTANCE_UNREACHABLE, "interruption"),
        (Reason.CONTAINER_EXITED_WITH_ERROR, "error"),
        (Reason.TERMINATED_BY_USER, None),
        (Reason.DONE_BY_RUNNER, None),
        (None, None),
    ],
)
def test_a_retry_policy_knows_a_failure_by_its_event(
    reason: Reason | None, event: str | None
) -> None:
    assert lifecycle.retry_event(reason) == event


@pytest.mark.parametrize(
    ("jobs", "state"),
    [
        (["running", "submitted"], "running"),
        (["pulling", "submitted"], "provisioning"),
        (["submitted"], "submitted"),
        ([], "submitted"),
    ],
)
def test_a_run_is_as_far_as_its_best_job(jobs: list[str], state: str) -> None:
    assert lifecycle.state_of_run(jobs) == state


@pytest.mark.parametrize(
    ("status", "reason", "code", "message", "shown"),
    [
        ("done", Reason.DONE_BY_RUNNER, 0, "", "exited (0)"),
        ("failed", Reason.CONTAINER_EXITED_WITH_ERROR, 127, "", "exited (127)"),
        ("failed", Reason.NO_CAPACITY, None, "", "no capacity"),
        ("failed", Reason.NO_CAPACITY, None, "no fleets of the project fit", "no fleets"),
        ("failed", Reason.INSTANCE_UNREACHABLE, None, "", "interrupted"),
        ("failed", Reason.EXECUTOR_ERROR, None, "", "error"),
        ("terminated", Reason.TERMINATED_BY_USER, None, "", "stopped"),
        ("aborted", Reason.ABORTED_BY_USER, None, "", "aborted"),
        ("terminated", Reason.MAX_DURATION_EXCEEDED, None, "", "terminated"),
        ("terminating", Reason.TERMINATED_BY_USER, None, "", "terminating"),
        ("pulling", None, None, "", "pulling"),
    ],
)
def test_a_list_shows_a_job_as_dstack_does(
    status: str, reason: Reason | None, code: int | None, message: str, shown: str
) -> None:
    assert lifecycle.job_message(status, reason, code, message) == shown


def test_what_the_state_does_not_tell_is_told_in_words() -> None:
    assert lifecycle.job_error(Reason.MAX_DURATION_EXCEEDED) == "max duration exceeded"
    assert lifecycle.job_error(Reason.DONE_BY_RUNNER) is None
    assert lifecycle.run_error(Reason.RETRY_LIMIT_EXCEEDED) == "retry limit exceeded"
    assert lifecycle.run_error(None) is None
