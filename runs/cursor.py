"""Pages of lists: the rows behind a place, in the order of a time and then of an id."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Cursor:
    """The first `limit` rows behind a time and an id, the newest first unless `ascending`."""

    moment: int | None
    id: str | None
    limit: int
    ascending: bool

    def page(self, asked: Any, moments: Any, ids: Any) -> Any:
        """A question for rows with these two columns, cut down to the page."""
        if self.moment is not None:
            asked = asked.where(self._behind(moments, ids))
        ordered = (moments, ids) if self.ascending else (moments.desc(), ids.desc())
        return asked.order_by(*ordered).limit(self.limit)

    def _behind(self, moments: Any, ids: Any) -> Any:
        beyond = moments > self.moment if self.ascending else moments < self.moment
        if self.id is None:
            return beyond
        beside = ids > self.id if self.ascending else ids < self.id
        return beyond | ((moments == self.moment) & beside)
