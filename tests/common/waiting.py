"""Waits for a condition, never for a time."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")


# A machine that does other things too is slow, not wrong: nothing is given up earlier.
LEAST_S = 60.0


def until(condition: Callable[[], T], *, seconds: float = LEAST_S, what: str = "it") -> T:
    """The first true answer of `condition`; fails after `seconds`, or LEAST_S, and says `what` did not happen."""
    seconds = max(seconds, LEAST_S)
    deadline = time.monotonic() + seconds
    while True:
        if answer := condition():
            return answer
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s: {answer!r}"
        time.sleep(0.01)


def press_ctrl_c(program: subprocess.Popen[Any]) -> None:
    """Interrupts a program until it ends, as a person would who sees that nothing happens.

    Python drops an interrupt that meets it while it destroys an object.
    """

    def ends() -> bool:
        program.send_signal(signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            program.wait(timeout=20)
        return program.poll() is not None

    until(ends, seconds=120, what="the end of an interrupted program")


def listens(path: Path) -> bool:
    """Whether somebody does on a Unix socket, whose file is there a moment earlier."""
    with socket.socket(socket.AF_UNIX) as probe:
        return probe.connect_ex(str(path)) == 0


# Below what the service itself chooses from and what the kernel gives to connections, and each worker of xdist has
# its own: nobody takes one of these between the look and the use, as with a port that the kernel chose.
_PORTS = range(12_000, 20_000)[int(os.environ.get("PYTEST_XDIST_WORKER", "gw0")[2:]) % 4 :: 4]
_next_port = itertools.count(random.randrange(len(_PORTS)))


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port of 127.0.0.1 that nobody uses now; another one at every call."""
    while True:
        port = _PORTS[next(_next_port) % len(_PORTS)]
        with socket.socket(socket.AF_INET, kind) as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
