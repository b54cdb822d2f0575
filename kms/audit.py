"""The record of every release of keys: written and synced before the answer leaves.

It holds who got keys and why they could, never a key or anything derived from one.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

from attest.boot_info import BootInfo
from attest.verified import Verified
from core.errors import Unavailable


class AuditLog:
    """A file of one JSON line per release, that only its owner reads and nobody shortens."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def record(self, method: str, boot: BootInfo, evidence: Verified) -> None:
        """Writes one line; Unavailable when it cannot be made durable, and then nothing may be released."""
        entry = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "method": method,
            "root": evidence.root,
            **boot.to_json(),
        }
        line = json.dumps(entry, separators=(",", ":")).encode() + b"\n"
        try:
            self._append(line)
        except OSError as error:
            raise Unavailable(f"the audit record cannot be written: {error.strerror}") from None

    def _append(self, line: bytes) -> None:
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW
        fd = os.open(self._path, flags, 0o600)
        try:
            if os.write(fd, line) != len(line):
                raise OSError(28, "it was cut short")
            os.fsync(fd)
        finally:
            os.close(fd)
