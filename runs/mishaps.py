"""What goes wrong with one row: it must not hold up the others, and it is told once, not at each round."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

logger = logging.getLogger(__name__)

T = TypeVar("T")


class Mishaps:
    """Runs steps of rows; a fault ends its own step alone."""

    def __init__(self) -> None:
        # By step and row: the fault that was told and has not gone since.
        self._told: dict[tuple[str, str], str] = {}

    def guarded(self, step: Callable[..., T], *of: Any) -> T | None:
        """What a step gives; None when it fails, which is logged unless it failed the same way before.

        `of` begins with the id of the row, if the step is about one.
        """
        key = (step.__name__.lstrip("_"), str(of[0]) if of else "")
        try:
            found = step(*of)
        except Exception as error:  # whatever it is: the next round tries again
            said = f"{type(error).__name__}: {error}"
            if self._told.get(key) != said:
                self._told[key] = said
                logger.error(
                    "%s failed and will be tried again", " ".join(key).strip(), exc_info=error
                )
            return None
        self._told.pop(key, None)
        return found

    def keep(self, row_ids: Iterable[str]) -> None:
        """Forgets the rows that are no more."""
        kept = {"", *row_ids}
        self._told = {key: said for key, said in self._told.items() if key[1] in kept}
