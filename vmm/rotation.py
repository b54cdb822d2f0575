"""Rotation of the logs that QEMU writes: copied away and cut in place, since QEMU keeps its descriptor.

Source: vmm.md section 11.  QEMU opens its logs for appending, so what it writes next lands at the new end.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from pathlib import Path

from core.config_cvm import LogConfig

_BOOT = re.compile(r"^===== boot @ \S+ =====\n", re.MULTILINE)
_MARK = re.compile(r"^===== rotated .* =====\n", re.MULTILINE)


def rotate_large(path: Path, rules: LogConfig) -> bool:
    """Rotates a log that is larger than the rules allow; whether it was."""
    try:
        size = os.stat(path).st_size
    except FileNotFoundError:
        return False
    if not rules.max_bytes or size <= rules.max_bytes:
        return False
    rotate(path, rules.max_backups)
    return True


def rotate(path: Path, backups: int) -> None:
    """Moves the content of a log to `PATH.1`, older ones up to `PATH.<backups>`, and notes it in the log."""
    archive = segment(path, 1)
    with open(path, "r+b") as live:
        if backups:
            for number in range(backups, 1, -1):
                if segment(path, number - 1).exists():
                    os.replace(segment(path, number - 1), segment(path, number))
            with open(archive, "wb") as copy:
                os.fchmod(copy.fileno(), 0o600)
                shutil.copyfileobj(live, copy)
                # What came while we copied; the rest of the race is microseconds.
                copy.write(live.read())
                copy.flush()
                os.fsync(copy.fileno())
        size = live.tell() if backups else os.fstat(live.fileno()).st_size
        live.truncate(0)
    where = f"to {archive.name} " if backups else ""
    mark(path, f"rotated {size} bytes {where}@ {_now()}")


def mark_boot(path: Path) -> None:
    """Notes the beginning of a boot."""
    mark(path, f"boot @ {_now()}")


def since_boot(text: str) -> str:
    """The part of a log that belongs to its last boot, without marks of the service's own."""
    return _MARK.sub("", _BOOT.split(text)[-1])


def mark(path: Path, text: str) -> None:
    """Appends a line of the service's own to a log."""
    with open(path, "ab") as log:
        log.write(f"===== {text} =====\n".encode())


def segment(path: Path, number: int) -> Path:
    """The path of an archived segment; 1 is the newest."""
    return path.with_name(f"{path.name}.{number}")


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
