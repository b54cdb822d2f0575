"""How a replica is asked whether it is ready, with a real HTTP server and real sockets."""

from __future__ import annotations

import socket
import threading
from typing import Any

import pytest

from models.run import RunJob
from runs import probes
from runs.jobs import job_specs
from runs.specs import RunSpec
from tests.common.waiting import free_port
from tests.unit.runs.conftest import Service
from vmm.network import Port


def at(port: int) -> Port:
    return Port("tcp", "127.0.0.1", port, 8000)


def probe(**more: Any) -> Any:
    """A probe as a job has it."""
    configuration = {"type": "service", "port": 80, "commands": ["x"], "probes": [{"type": "http"}]}
    configuration["probes"] = [{"type": "http", **more}]
    (job,) = job_specs(RunSpec().load({"configuration": configuration}), 0)
    (found,) = job["probes"]
    return found


@pytest.mark.parametrize(
    ("status", "passes"), [(200, True), (204, True), (302, False), (404, False), (503, False)]
)
def test_a_probe_passes_with_a_status_of_2xx_and_follows_nothing(
    service: Service, status: int, passes: bool
) -> None:
    service.answer = (status, {"Location": "/elsewhere"}, b"")

    assert probes.succeeds(probe(url="/health?a=1"), at(service.port)) is passes
    assert [path for _, path, _, _ in service.asked] == ["/health?a=1"]


def test_a_probe_is_sent_as_it_is_configured(service: Service) -> None:
    headers = [{"name": "X-Token", "value": "t"}, {"name": "Host", "value": "web.example"}]

    assert probes.succeeds(probe(method="post", body="hi ü", headers=headers), at(service.port))

    ((method, path, sent, body),) = service.asked
    assert (method, path, body.decode()) == ("POST", "/", "hi ü")
    assert (sent["X-Token"], sent["Host"]) == ("t", "web.example")


def test_a_header_that_would_be_two_fails_the_probe(service: Service) -> None:
    headers = [{"name": "X", "value": "a\r\nY: b"}]

    assert not probes.succeeds(probe(headers=headers), at(service.port))
    assert service.asked == []


def test_a_port_that_answers_is_ready_whatever_it_says(service: Service) -> None:
    service.answer = (500, {}, b"")

    assert probes.answers(at(service.port))


def test_a_port_that_nobody_has_is_not_ready() -> None:
    assert not probes.answers(at(free_port()))
    assert not probes.succeeds(probe(), at(free_port()))


def test_a_line_that_is_taken_and_hung_up_is_not_ready() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def hang_up() -> None:
            listening.accept()[0].close()

        thread = threading.Thread(target=hang_up)
        thread.start()
        assert not probes.answers(at(listening.getsockname()[1]))
        thread.join()


def test_a_service_that_is_slow_to_answer_listens_and_fails_its_probe(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(probes, "LISTENS_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]

        assert probes.answers(at(port))
        assert not probes.succeeds({**probe(), "timeout": 0.2}, at(port))


def replica(*streaks: int, ready: bool = False) -> RunJob:
    """The row of a job, as far as its probes go."""
    return RunJob(streaks=list(streaks) or None, ready=ready)


def test_a_streak_is_counted_as_far_as_it_is_needed() -> None:
    (asked,) = wanted = [probe(ready_after=2)]

    counted = [probes.standing_after(wanted, replica(streak), 0, True) for streak in (0, 1, 2)]

    assert asked["ready_after"] == 2
    assert [each.streaks for each in counted] == [[1], [2], [2]]
    assert [each.ready for each in counted] == [False, True, True]
    assert counted[2] == probes.standing(replica(2, ready=True))


def test_a_failure_begins_a_streak_anew_and_takes_the_readiness_away() -> None:
    wanted = [probe(), probe()]

    after = probes.standing_after(wanted, replica(1, 1, ready=True), 1, False)

    assert after == probes.Standing([1, 0], ready=False)


def test_a_probe_that_never_passed_has_a_streak_once_it_was_asked() -> None:
    before = replica()

    after = probes.standing_after([probe()], before, 0, False)

    assert after == probes.Standing([0], ready=False) != probes.standing(before)


def test_a_port_that_answered_once_stays_ready() -> None:
    assert probes.standing_after([], replica(), None, True).ready
    assert probes.standing_after([], replica(ready=True), None, False).ready
