"""What is done again and again, whatever happens in one turn."""

from __future__ import annotations

import threading

import pytest

from core.errors import Unavailable
from secretvm.rounds import Round
from tests.common.waiting import until


def test_it_begins_at_once_and_goes_on_until_it_is_stopped() -> None:
    turns: list[str] = []
    round_ = Round("counting", 0.01, lambda: turns.append(threading.current_thread().name))

    round_.start()
    until(lambda: len(turns) >= 3, what="the third turn")
    round_.stop()

    assert set(turns) == {"counting"}
    assert round_.thread is not None and not round_.thread.is_alive()


@pytest.mark.parametrize(
    ("failure", "told"),
    [(Unavailable("it sleeps"), "asking: it sleeps"), (OSError("disk full"), "asking failed")],
)
def test_a_turn_that_fails_is_told_and_followed_by_the_next(
    failure: Exception, told: str, caplog: pytest.LogCaptureFixture
) -> None:
    turns: list[int] = []

    def ask() -> None:
        turns.append(1)
        if len(turns) == 1:
            raise failure

    round_ = Round("asking", 0.01, ask)
    round_.start()
    until(lambda: len(turns) >= 2, what="the second turn")
    round_.stop()

    assert [record.getMessage() for record in caplog.records] == [told]


@pytest.mark.parametrize("once_more", [True, False])
def test_the_end_is_waited_for_and_comes_after_one_more_turn_where_that_is_wanted(
    once_more: bool,
) -> None:
    turns: list[int] = []
    round_ = Round("counting", 600, lambda: turns.append(1), once_more=once_more)
    round_.start()
    until(lambda: turns, what="the first turn")

    round_.stop()

    assert len(turns) == (2 if once_more else 1)


def test_one_that_never_began_can_be_stopped() -> None:
    Round("nothing", 1, lambda: None).stop()
