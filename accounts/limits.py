"""How often a caller may make a call: counted in rows, so that all workers of the service count as one."""

from __future__ import annotations

import math
import time

from sqlalchemy import delete, select

from core.errors import RateLimited
from models.base import Database
from models.secretvm import CountedCall

WINDOW_MS = 60_000


def count(database: Database, caller: bytes, most: int) -> None:
    """Counts a call; RateLimited when its caller has made `most` within the last minute."""
    now = time.time_ns() // 1_000_000
    with database.writing() as session:
        session.execute(delete(CountedCall).where(CountedCall.at_ms <= now - WINDOW_MS))
        asked = select(CountedCall.at_ms).where(CountedCall.caller == caller)
        made = session.scalars(asked.order_by(CountedCall.at_ms)).all()
        if len(made) < most:
            session.add(CountedCall(caller=caller, at_ms=now))
            return
    wait_s = max(1, math.ceil((made[-most] + WINDOW_MS - now) / 1000)) if most else 60
    raise RateLimited(f"at most {most} of these calls a minute; try again in {wait_s} s", wait_s)
