"""One QMP command with a deadline, through PyPI qemu.qmp (QMPClient; its `legacy` module is GPL)."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from qemu.qmp import QMPClient
from qemu.qmp.error import QMPError

from core.errors import Conflict, Upstream, UpstreamTimeout
from core.files import locked

DEADLINE_S = 5.0


def execute(
    workdir: Path,
    command: str,
    arguments: dict[str, Any] | None = None,
    *,
    deadline_s: float = DEADLINE_S,
) -> Any:
    """Sends one command to the QEMU of a work directory and returns its answer.

    QEMU serves one client at a time, so callers take turns.  Raises UpstreamTimeout after `deadline_s`
    seconds and Upstream when QEMU refuses or goes away.
    """
    started = time.monotonic()
    try:
        with locked(workdir / "qmp.lock", timeout_s=deadline_s):
            left = deadline_s - (time.monotonic() - started)
            return _run(_execute(workdir / "qmp.sock", command, arguments), max(left, 0.1))
    except Conflict:
        raise UpstreamTimeout("QEMU is busy with another caller") from None
    except FileNotFoundError:
        raise Upstream("QEMU: the VM is gone") from None


def wait_for_greeting(workdir: Path, is_alive: Callable[[], bool], *, deadline_s: float) -> bool:
    """Waits until QEMU speaks QMP: its machine is built and all its ports are bound.

    False when the process ended before that; UpstreamTimeout after `deadline_s` seconds.
    """
    deadline = time.monotonic() + deadline_s
    while is_alive():
        if time.monotonic() > deadline:
            raise UpstreamTimeout("QEMU did not answer on its QMP socket")
        if not (workdir / "qmp.sock").exists():
            time.sleep(0.004)
            continue
        try:
            execute(workdir, "query-status", deadline_s=max(deadline - time.monotonic(), 0.1))
            return True
        except Upstream:
            time.sleep(0.004)  # not listening yet
    return False


def _run(awaitable: Any, deadline_s: float) -> Any:
    async def bounded() -> Any:
        return await asyncio.wait_for(awaitable, deadline_s)

    try:
        return asyncio.run(bounded())
    except TimeoutError:
        raise UpstreamTimeout(f"QEMU did not answer within {deadline_s:.1f} s") from None
    except (QMPError, OSError, EOFError) as error:
        raise Upstream(f"QEMU: {error}") from None


async def _execute(path: Path, command: str, arguments: dict[str, Any] | None) -> Any:
    client = QMPClient("casemate")
    await client.connect(str(path))
    try:
        return await client.execute(command, arguments)
    finally:
        # What was answered counts, also when QEMU ends at once.
        with contextlib.suppress(QMPError, OSError, EOFError):
            await client.disconnect()
