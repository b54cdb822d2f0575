from __future__ import annotations

import itertools

import pytest

from vmm.lifecycle import Action, Observed, Wished, is_at_rest, next_action, status

R, H, S, X = Wished.RUNNING, Wished.SHUTDOWN, Wished.STOPPED, Wished.REMOVED
ABSENT, STARTING, ALIVE = Observed.ABSENT, Observed.STARTING, Observed.ALIVE

WORDS = {
    (R, ABSENT): "exited",
    (R, STARTING): "starting",
    (R, ALIVE): "running",
    (H, ABSENT): "stopped",
    (H, STARTING): "stopping",
    (H, ALIVE): "stopping",
    (S, ABSENT): "stopped",
    (S, STARTING): "stopping",
    (S, ALIVE): "stopping",
    (X, ABSENT): "removing",
    (X, STARTING): "removing",
    (X, ALIVE): "removing",
}

ACTIONS = {
    (R, ABSENT, False): Action.NONE,
    (R, ABSENT, True): Action.ADOPT,
    (R, STARTING, False): Action.START,
    (R, STARTING, True): Action.ADOPT,
    (R, ALIVE, False): Action.BURY,
    (R, ALIVE, True): Action.NONE,
    (H, ABSENT, False): Action.NONE,
    (H, ABSENT, True): Action.ADOPT,
    (H, STARTING, False): Action.BURY,
    (H, STARTING, True): Action.ADOPT,
    (H, ALIVE, False): Action.BURY,
    (H, ALIVE, True): Action.NONE,
    (S, ABSENT, False): Action.NONE,
    (S, ABSENT, True): Action.STOP,
    (S, STARTING, False): Action.STOP,
    (S, STARTING, True): Action.STOP,
    (S, ALIVE, False): Action.BURY,
    (S, ALIVE, True): Action.STOP,
    (X, ABSENT, False): Action.REMOVE,
    (X, ABSENT, True): Action.REMOVE,
    (X, STARTING, False): Action.REMOVE,
    (X, STARTING, True): Action.REMOVE,
    (X, ALIVE, False): Action.REMOVE,
    (X, ALIVE, True): Action.REMOVE,
}


def test_the_tables_have_every_pair_and_triple() -> None:
    assert set(WORDS) == set(itertools.product(Wished, Observed))
    assert set(ACTIONS) == set(itertools.product(Wished, Observed, (False, True)))


@pytest.mark.parametrize(("pair", "word"), WORDS.items())
def test_every_pair_of_facts_has_its_word(pair: tuple[str, str], word: str) -> None:
    assert status(*pair) == word
    assert status(str(pair[0]), str(pair[1])) == word


@pytest.mark.parametrize(("facts", "action"), ACTIONS.items())
def test_every_triple_of_facts_has_its_next_step(
    facts: tuple[str, str, bool], action: Action
) -> None:
    assert next_action(*facts) is action


# What each step makes of the facts when it succeeds.
AFTER = {
    Action.START: (ALIVE, True),
    Action.ADOPT: (ALIVE, True),
    Action.STOP: (ABSENT, False),
    Action.BURY: (ABSENT, False),
}


@pytest.mark.parametrize("facts", ACTIONS)
def test_every_vm_comes_to_rest_in_a_few_steps(facts: tuple[Wished, Observed, bool]) -> None:
    wished, observed, lives = facts
    for _ in Action:
        action = next_action(wished, observed, lives)
        if action in (Action.NONE, Action.REMOVE):
            break
        observed, lives = AFTER[action]

    assert action in (Action.NONE, Action.REMOVE)
    assert (action is Action.REMOVE) == (wished is X)
    assert wished is not S or (observed, lives) == (ABSENT, False)


@pytest.mark.parametrize(("wished", "observed"), WORDS)
def test_resources_change_only_in_rest(wished: str, observed: str) -> None:
    assert is_at_rest(wished, observed) == (WORDS[wished, observed] in ("stopped", "exited"))  # type: ignore[index]
