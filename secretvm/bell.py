"""The bell that tells the background process of a new job: a huey queue in a file of its own.

A bell is only a bell: the rows of models/job.py are the truth, and a job whose bell was lost is found without it.
"""

from __future__ import annotations

import contextlib
import functools
import json
import logging
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

from huey import SqliteHuey
from huey.consumer import Consumer
from huey.registry import Message
from huey.serializer import Serializer

logger = logging.getLogger(__name__)

FILE = "bell.db"
# Jobs wait for guests most of their time; so many of them may do so at once.
WORKERS = 4
# How long a bell may ring unheard.
LOOK_S = 0.5
_TASK = "job"


class JsonSerializer(Serializer):  # type: ignore[misc] # huey has no types
    """Messages as JSON: what lies in a file is data, and pickled data is code."""

    def _serialize(self, data: tuple[Any, ...]) -> bytes:
        return json.dumps(list(data)).encode()

    def _deserialize(self, data: bytes) -> Message:
        return Message(*json.loads(data))


class Listener(Consumer):  # type: ignore[misc] # huey has no types
    """huey's worker threads in a process whose signals are somebody else's."""

    def _set_signal_handlers(self) -> None:
        """None: the background process has its own."""


def ring(data_dir: Path, job_id: str) -> None:
    """Tells of a job.  A bell that cannot be rung is no reason to refuse the job."""
    with contextlib.suppress(sqlite3.OperationalError):
        _queue(data_dir)[1](job_id)


def is_silent(data_dir: Path) -> bool:
    """Whether all that was rung was heard."""
    return bool(_queue(data_dir)[0].pending_count() == 0)


def listen(data_dir: Path, answer: Callable[[str], None]) -> Listener:
    """Calls `answer` with each job id that is rung, in threads that end with the process."""
    queue = _opened(data_dir)

    def heard(job_id: str) -> None:  # huey knows a task by the module of its function too
        answer(job_id)

    queue.task(name=_TASK)(heard)
    return Listener(queue, workers=WORKERS, periodic=False, initial_delay=LOOK_S, max_delay=LOOK_S)


@functools.lru_cache(maxsize=8)
def _queue(data_dir: Path) -> tuple[SqliteHuey, Callable[[str], Any]]:
    queue = _opened(data_dir)
    return queue, queue.task(name=_TASK)(_unheard)


def _opened(data_dir: Path) -> SqliteHuey:
    return SqliteHuey(
        "jobs",
        filename=str(data_dir / FILE),
        results=False,
        serializer=JsonSerializer(),
    )


def _unheard(job_id: str) -> None:
    """What a bell means is known where it is heard."""
