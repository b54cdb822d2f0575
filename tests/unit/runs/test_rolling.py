"""What a service does next on its way to its configuration."""

from __future__ import annotations

from typing import Any

import pytest

from models.run import Run, RunJob
from runs import rolling
from runs.lifecycle import Reason
from runs.rolling import NO_ROOM_US

NOW = 1_000_000_000_000


def run(*jobs: RunJob, replicas: int = 1, deployment_num: int = 1, kind: str = "service") -> Run:
    """A run whose configuration says so many replicas."""
    configuration: dict[str, Any] = {"type": kind}
    if kind == "service":
        configuration["replicas"] = {"min": replicas, "max": replicas}
    spec = {"configuration": configuration}
    ordered = sorted(jobs, key=lambda job: (job.replica_num, job.submission_num))
    return Run(spec=spec, status="running", deployment_num=deployment_num, jobs=ordered)


def replica(num: int, state: str = "ready", *, deployment: int = 0, **more: Any) -> RunJob:
    """A replica that runs and is ready, or is in another state."""
    is_ready = state == "ready" and "status" not in more
    values: dict[str, Any] = {
        "id": f"{num}.{more.get('submission_num', 0)}",
        "replica_num": num,
        "job_num": 0,
        "submission_num": 0,
        "deployment_num": deployment,
        "status": "running" if is_ready else state,
        "ready": is_ready,
        "ready_us": 1 if is_ready else None,
    }
    return RunJob(**{**values, **more})


def new(num: int, state: str = "ready", **more: Any) -> RunJob:
    return replica(num, state, deployment=1, **more)


def step(found: Run, now: int = NOW) -> tuple[int, list[int]]:
    """How many replicas come, and the numbers of those that go."""
    made = rolling.step(found, now)
    return made.add, [job.replica_num for job in made.stop]


ENDED = {"status": "terminated", "termination_reason": Reason.SCALED_DOWN}
FAILED = {"status": "failed", "termination_reason": Reason.CONTAINER_EXITED_WITH_ERROR}


@pytest.mark.parametrize(
    ("jobs", "replicas", "does"),
    [
        # One at a time: a new one comes beside the old, the old one goes when it is ready, and then the next.
        ([replica(0)], 1, (1, [])),
        ([replica(0), new(1, "submitted")], 1, (0, [])),
        ([replica(0), new(1, "running")], 1, (0, [])),
        ([replica(0), new(1)], 1, (0, [0])),
        ([replica(0, "terminating", termination_reason=Reason.SCALED_DOWN), new(1)], 1, (0, [])),
        ([replica(0, **ENDED), new(1)], 1, (0, [])),
        ([replica(0), replica(1), replica(2)], 3, (1, [])),
        ([replica(0), replica(1), new(2)], 2, (0, [1])),
        (
            [replica(0), replica(1, "terminating", termination_reason="scaled_down"), new(2)],
            2,
            (0, []),
        ),
        ([replica(0), replica(1, **ENDED), new(2)], 2, (1, [])),
        # The number changes at the same time.
        ([replica(0)], 3, (3, [])),
        ([replica(0), replica(1), replica(2)], 1, (0, [2, 1])),
        ([replica(0), replica(1, **ENDED), replica(2, **ENDED)], 1, (1, [])),
        # An old one that serves nobody makes room first.
        ([replica(0, "provisioning")], 1, (1, [0])),
        # Only the number changes.
        ([new(0)], 3, (2, [])),
        ([new(0), new(1), new(2)], 1, (0, [2, 1])),
        ([new(0), new(1, "provisioning"), new(2)], 2, (0, [1])),
        # One that ended well by itself is not made again.
        (
            [new(0), new(1, "done", ready_us=1, termination_reason=Reason.DONE_BY_RUNNER)],
            2,
            (0, []),
        ),
    ],
)
def test_a_step(jobs: list[RunJob], replicas: int, does: tuple[int, list[int]]) -> None:
    assert step(run(*jobs, replicas=replicas)) == does


@pytest.mark.parametrize("end", [FAILED, {**FAILED, "status": "done"}])
def test_a_replica_that_fails_before_it_was_ready_stops_the_update(end: Any) -> None:
    found = run(replica(0), new(1, **end))

    assert rolling.given_up(found)
    assert step(found) == (0, [])
    assert [job.replica_num for job in rolling.counted(found, found.jobs)] == [0]


def test_a_stopped_update_leaves_an_old_replica_that_has_a_bad_moment() -> None:
    weak = replica(0, "running", ready_us=1)

    assert step(run(weak, replica(1), new(2, **FAILED), replicas=2)) == (0, [])


def test_the_next_update_is_tried_again() -> None:
    found = run(replica(0), new(1, **FAILED), deployment_num=2)

    assert not rolling.given_up(found)
    assert step(found) == (1, [])


def test_a_replica_that_fails_after_it_was_ready_counts() -> None:
    failed = new(1, ready_us=1, **FAILED)

    assert failed in rolling.counted(run(replica(0), failed), [replica(0), failed])


def test_when_no_replica_is_left_a_failure_counts() -> None:
    failed = new(1, **FAILED)

    assert failed in rolling.counted(run(failed), [replica(0, **ENDED), failed])


def test_room_is_looked_for_ever_more_seldom() -> None:
    full = {"status": "failed", "termination_reason": Reason.NO_CAPACITY, "finished_us": NOW}
    once = run(replica(0), new(1, **full))
    often = run(replica(0), *(new(1, submission_num=num, **full) for num in range(20)))

    assert rolling.waits(once)
    assert not rolling.given_up(once)
    assert step(once, NOW + NO_ROOM_US - 1) == (0, [])
    assert step(once, NOW + NO_ROOM_US) == (1, [])
    assert step(often, NOW + 599_999_999) == (0, [])
    assert step(often, NOW + 600_000_000) == (1, [])


def test_only_services_have_replicas_that_are_replaced() -> None:
    task = run(replica(0), kind="task")

    assert step(task) == (0, [])
    assert rolling.counted(task, task.jobs) == task.jobs


def test_a_run_that_ends_is_left_alone() -> None:
    found = run(replica(0))
    found.status = "terminating"

    assert step(found) == (0, [])
