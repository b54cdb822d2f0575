"""The runner against a host of the test's own: what it tells, what it repeats, and what it keeps for later."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from core import prpc
from core.errors import Conflict, NotFound, Unavailable
from core.messages import JobReport, Order, Report, StopOrder
from guest.host_calls import ask_runner
from guest.runner import Runner, serve
from tests.common.waiting import until


class Host:
    """Takes reports as the service does: output in order, once; `away` lets it refuse them."""

    def __init__(self) -> None:
        self.reports: list[Report] = []
        self.output = b""
        self.away = False

    def call(self, method: str, params: Mapping[str, object], timeout_s: float) -> Any:
        assert method == "Job"
        if self.away:
            raise Unavailable("the service restarts")
        report: Report = prpc.load(JobReport, params)
        self.reports.append(report)
        if report.offset == len(self.output):
            self.output += report.data
        return {"offset": len(self.output)}

    def stages(self, job_id: str) -> list[str]:
        """The stages of a job that were told, in order."""
        silent = ("", "note", "alive")
        return [r.stage for r in self.reports if r.id == job_id and r.stage not in silent]


@pytest.fixture
def host() -> Host:
    return Host()


@pytest.fixture
def runner(host: Host, tmp_path: Path) -> Iterator[Runner]:
    runner = Runner(tmp_path, host)
    runner.start()
    yield runner
    if runner.job is not None:
        runner.stop(StopOrder(runner.job.order.id))
        until(lambda: runner.job is None or runner.job.is_over)


def order(job_id: str, script: str, **fields: Any) -> Order:
    return Order(job_id, command=("/bin/bash", "-c", script), **fields)


def test_it_says_that_it_is_there_before_any_job(runner: Runner, host: Host) -> None:
    until(lambda: host.reports)

    assert host.reports[0] == Report(stage="alive")


def test_a_job_is_told_of_from_its_order_to_its_end_with_its_output_before_the_end(
    runner: Runner, host: Host
) -> None:
    runner.submit(order("a", "echo one; echo two >&2; exit 3"))
    until(lambda: "exited" in host.stages("a"))

    assert host.stages("a") == ["pulling", "running", "exited"]
    assert host.output == b"one\r\ntwo\r\n"
    end = next(each for each in host.reports if each.stage == "exited")
    assert (end.exit_status, end.offset) == (3, len(host.output))


def test_a_large_output_comes_in_pieces_and_whole(runner: Runner, host: Host) -> None:
    runner.submit(order("a", "head -c 300000 /dev/zero | tr '\\0' x"))
    until(lambda: "exited" in host.stages("a"))

    assert host.output == b"x" * 300_000
    assert len([each for each in host.reports if each.data]) >= 3


def test_a_host_that_was_away_is_told_what_it_missed(runner: Runner, host: Host) -> None:
    host.away = True
    runner.submit(order("a", "echo while you were out"))
    until(lambda: runner.job is not None and runner.job.is_over)

    host.away = False

    until(lambda: "exited" in host.stages("a"))
    assert host.stages("a") == ["pulling", "running", "exited"]
    assert host.output == b"while you were out\r\n"


def test_a_job_submitted_again_is_told_anew_from_the_byte_that_the_host_wants(
    runner: Runner, host: Host
) -> None:
    runner.submit(order("a", "echo 0123456789"))
    until(lambda: "exited" in host.stages("a"))
    host.reports.clear()
    host.output = host.output[:4]  # as much as the restarted service found on its disk

    runner.submit(order("a", "echo this is not run", offset=4))

    until(lambda: "exited" in host.stages("a"))
    assert host.output == b"0123456789\r\n"
    assert host.stages("a") == ["pulling", "running", "exited"]


def test_one_job_after_another_but_not_two_at_once(runner: Runner, host: Host) -> None:
    runner.submit(order("a", "sleep 1000"))
    until(lambda: "running" in host.stages("a"))

    with pytest.raises(Conflict, match="another job runs"):
        runner.submit(order("b", "true"))
    runner.stop(StopOrder("b"))  # of a job that is not ours: nothing
    runner.stop(StopOrder("a"))
    until(lambda: "exited" in host.stages("a"))
    host.output = b""
    runner.submit(order("b", "echo second"))

    until(lambda: "exited" in host.stages("b"))
    assert host.output == b"second\r\n"


def test_a_released_job_is_not_told_of_any_more(runner: Runner, host: Host) -> None:
    runner.submit(order("a", "true"))
    until(lambda: "exited" in host.stages("a"))

    runner.release("a")
    runner._reporter._spoke = -1000.0  # its next word is due
    host.reports.clear()
    with runner.changed:
        runner.changed.notify_all()

    until(lambda: host.reports)
    assert {each.id for each in host.reports} == {""}


@pytest.fixture
def path(runner: Runner, tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "runner.sock"
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(os.fspath(path))
        listening.listen()
        threading.Thread(target=_until_closed, args=(runner, listening), daemon=True).start()
        yield path
        listening.shutdown(socket.SHUT_RDWR)


def _until_closed(runner: Runner, listening: socket.socket) -> None:
    try:
        serve(runner, listening)
    except OSError:
        return


def test_the_agent_hands_the_hosts_calls_over(path: Path, host: Host) -> None:
    ask_runner(path, "SubmitJob", {"id": "a", "command": ["sleep", "1000"]})
    until(lambda: "running" in host.stages("a"))

    with pytest.raises(Conflict, match="another job runs"):
        ask_runner(path, "SubmitJob", {"id": "b", "command": ["true"]})
    ask_runner(path, "StopJob", {"id": "a", "grace_s": 30})

    until(lambda: "exited" in host.stages("a"))


def test_a_vm_without_a_runner_has_no_such_calls(tmp_path: Path) -> None:
    with pytest.raises(NotFound, match="unknown method: SubmitJob"):
        ask_runner(tmp_path / "runner.sock", "SubmitJob", {"id": "a"})
