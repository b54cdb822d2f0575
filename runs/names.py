"""Names and numbers that the service gives to runs and fleets whose owner gave none."""

from __future__ import annotations

from collections.abc import Collection

from rest.names import pair

# A search without end would hold up everybody: who asks is writing to the database.
TRIES = 100


def for_fleet(taken: Collection[str]) -> str:
    """A name that no fleet has; with a number only where a project has nearly all pairs."""
    for _ in range(TRIES):
        if (name := pair()) not in taken:
            return name
    return for_run(taken)


def for_run(taken: Collection[str]) -> str:
    """A name with the first number that no run has."""
    base, number = pair(), 1
    while f"{base}-{number}" in taken:
        number += 1
    return f"{base}-{number}"


def lowest_free(taken: Collection[int]) -> int:
    """The lowest number from 0 that is not taken."""
    number = 0
    while number in taken:
        number += 1
    return number
