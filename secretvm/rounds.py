"""What this interface does again and again in the background process, each by a thread of its own."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass, field

from core.errors import CasemateError

logger = logging.getLogger(__name__)

# How long the end of one waits for what it is at.
STOP_S = 5.0


@dataclass
class Round:
    """Does something, pauses and does it again; a failure is logged, and the next may succeed.

    `once_more`: also after it was asked to end.
    """

    name: str
    pause_s: float
    do: Callable[[], object]
    once_more: bool = False
    stopping: threading.Event = field(default_factory=threading.Event)
    thread: threading.Thread | None = None

    def start(self) -> None:
        """Begins at once."""
        self.thread = threading.Thread(target=self._go, name=self.name, daemon=True)
        self.thread.start()

    def stop(self) -> None:
        """Ends after what is under way."""
        self.stopping.set()
        if self.thread is not None:
            self.thread.join(STOP_S)

    def _go(self) -> None:
        while not self.stopping.is_set():
            self._try()
            self.stopping.wait(self.pause_s)
        if self.once_more:
            self._try()

    def _try(self) -> None:
        try:
            self.do()
        except CasemateError as error:
            logger.warning("%s: %s", self.name, error.message)
        except Exception:  # a full disk passes, and the rounds must go on
            logger.exception("%s failed", self.name)
