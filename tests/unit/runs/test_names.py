"""Names that are made up."""

from __future__ import annotations

import pytest

from rest.names import ADJECTIVES, ANIMALS
from runs import names
from runs.specs import is_name


def test_a_name_keeps_the_rule_of_names() -> None:
    assert all(
        is_name(f"{adjective}-{animal}-1000") for adjective in ADJECTIVES for animal in ANIMALS
    )


def test_a_run_gets_the_first_free_number(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "pair", lambda: "red-fox")

    assert names.for_run({"red-fox-1", "red-fox-3"}) == "red-fox-2"


def test_a_fleet_gets_a_name_that_none_has(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = iter(["red-fox", "red-fox", "old-owl"])
    monkeypatch.setattr(names, "pair", lambda: next(drawn))

    assert names.for_fleet({"red-fox"}) == "old-owl"


@pytest.mark.parametrize(("taken", "free"), [([], 0), ([0, 1, 3], 2), ([1], 0)])
def test_the_lowest_free_number_counts_from_nothing(taken: list[int], free: int) -> None:
    assert names.lowest_free(taken) == free


def test_a_project_that_has_all_pairs_gets_a_number() -> None:
    taken = {f"{adjective}-{animal}" for adjective in ADJECTIVES for animal in ANIMALS}

    assert names.for_fleet(taken).endswith("-1")
