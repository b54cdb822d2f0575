"""Gunicorn as `casemate serve` and `casemate kms` run it: configured by us alone, and ended with the parent process."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gunicorn.app.base import BaseApplication
from gunicorn.arbiter import Arbiter

from core.proc import end_with_parent
from vmm.worker import StructuredLogger

Application = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]

_ALWAYS: Mapping[str, Any] = {
    "preload_app": True,
    "graceful_timeout": 3,
    "timeout": 120,
    "logger_class": StructuredLogger,
    "control_socket_disable": True,
    # The port is free for the next service the moment this one is killed.
    "post_fork": lambda master, worker: end_with_parent(master.pid),
}


class Master(Arbiter):  # type: ignore[misc] # gunicorn has no types
    """gunicorn's arbiter, which ends when its parent is gone."""

    def __init__(self, app: Server) -> None:
        self._parent = app.parent
        super().__init__(app)

    def manage_workers(self) -> None:
        """Called once a second and whenever a child ends."""
        if self._parent not in (None, os.getppid()):
            raise StopIteration  # gunicorn's own way to end in order
        super().manage_workers()


class Server(BaseApplication):  # type: ignore[misc] # gunicorn has no types
    """What `make` makes, served with gunicorn's settings `given`; it ends with the process `parent` where one is given."""

    def __init__(
        self,
        given: Mapping[str, Any],
        make: Callable[[], Application],
        parent: int | None,
        master: type[Master] = Master,
    ) -> None:
        self._given = given
        self._make = make
        self._master = master
        self.parent = parent
        super().__init__()

    def load_config(self) -> None:
        """The given settings and those that all have."""
        for key, value in {**_ALWAYS, **self._given}.items():
            self.cfg.set(key, value)

    def load(self) -> Application:
        """The WSGI application, made once for all workers."""
        application = self._make()
        # Workers share what is there now; a collection after the fork would copy it page by page.
        gc.collect()
        gc.freeze()
        return application

    def run(self) -> None:
        """Serves until a signal says otherwise."""
        self._master(self).run()
