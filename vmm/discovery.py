"""Discovery files: where command-line clients on this host find a running VMM (vmm.md section 14)."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from core.config import Config
from core.files import write_atomic
from vmm.version import VERSION

logger = logging.getLogger(__name__)

# Where contrib/systemd/casemate.service keeps them, for whoever may read there.
SYSTEM = Path("/run/casemate/dstack-vmm")


def folder() -> Path:
    """Where this user's files are."""
    runtime = os.environ.get("XDG_RUNTIME_DIR") or f"/run/user/{os.getuid()}"
    return Path(runtime) / "dstack-vmm"


def announce(config: Config, config_file: Path | None) -> Path | None:
    """Writes this process's file and drops those of dead ones; failing is a warning, never fatal."""
    path = folder() / f"{uuid.uuid4()}.json"
    kind, _, rest = config.address.partition(":")
    entry = {
        "id": path.stem,
        "pid": os.getpid(),
        "address": f"unix:{Path(rest).absolute()}" if kind == "unix" else rest,
        "working_dir": os.getcwd(),
        "config_file": None if config_file is None else str(config_file.absolute()),
        "data_dir": str(config.data_dir),
        "image_path": str(config.image.path),
        "run_path": str(config.run_path),
        "node_name": config.node_name,
        "version": VERSION,
        "started_at": int(time.time()),
    }
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        for old, known in _entries(path.parent):
            if not _lives(known):
                old.unlink(missing_ok=True)
        write_atomic(path, json.dumps(entry, indent=1))
        return path
    except OSError as error:
        logger.warning("no discovery file: %s", error)
        return None


def running() -> list[dict[str, Any]]:
    """The VMMs of this user and of the system that live, the newest first."""
    folders = dict.fromkeys((folder(), SYSTEM))
    found = [entry for each in folders for _, entry in _entries(each) if _lives(entry)]
    return sorted(found, key=lambda entry: -entry.get("started_at", 0))


def _entries(place: Path) -> Iterator[tuple[Path, dict[str, Any]]]:
    for path in place.glob("*.json"):
        with contextlib.suppress(OSError, ValueError):
            entry = json.loads(path.read_text())
            if isinstance(entry, dict):
                yield path, entry


def _lives(entry: dict[str, Any]) -> bool:
    try:
        os.kill(int(entry["pid"]), 0)
    except (ProcessLookupError, KeyError, ValueError, TypeError):
        return False
    except PermissionError:
        return True
    return True
