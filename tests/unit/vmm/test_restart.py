from __future__ import annotations

from dataclasses import replace

from core.config_cvm import AutoRestartConfig
from vmm.restart import Decision, decide

RULES = AutoRestartConfig(max_retries=5, initial_backoff=5, max_backoff=60)


def test_the_first_sight_schedules_a_try_after_the_initial_backoff() -> None:
    assert decide(0, None, 1000, RULES) == Decision(0, 6000)


def test_nothing_happens_before_its_time() -> None:
    assert decide(0, 6000, 5999, RULES) is None


def test_each_try_puts_the_next_one_off_twice_as_long_up_to_the_maximum() -> None:
    restarts, at, tries = 0, 6000, []
    for _ in range(5):
        decision = decide(restarts, at, at, RULES)
        assert decision is not None
        assert decision.start and not decision.give_up
        assert decision.next_restart_ms is not None
        tries.append((decision.next_restart_ms - at) // 1000)
        restarts, at = decision.restarts, decision.next_restart_ms

    assert tries == [10, 20, 40, 60, 60]
    assert restarts == 5


def test_after_the_last_try_one_word_and_silence() -> None:
    last = decide(5, 1000, 1000, RULES)
    assert last is not None
    assert last.give_up and not last.start

    assert decide(last.restarts, last.next_restart_ms, 10**12, RULES) is None


def test_nothing_happens_when_it_is_off() -> None:
    assert decide(0, None, 0, replace(RULES, enabled=False)) is None


def test_no_retries_means_the_word_alone() -> None:
    decision = decide(0, 1000, 1000, replace(RULES, max_retries=0))

    assert decision == Decision(1, 1000, give_up=True)
