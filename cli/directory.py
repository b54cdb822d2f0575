"""The database that `casemate user`, `token` and `project` work on, whether the service runs or not."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from core.errors import NotFound

if TYPE_CHECKING:
    from models.base import Database

CONFIG = click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The service's TOML file.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")


def day(moment_ms: int | None) -> str:
    """A moment as people write it, in UTC; nothing for none."""
    return "" if moment_ms is None else time.strftime("%F %H:%MZ", time.gmtime(moment_ms / 1000))


def data_dir(config_file: Path | None) -> Path:
    """The data directory of a configuration, else of the environment, else of the service running here."""
    from core.config import load
    from vmm import discovery

    is_named = config_file is not None or os.environ.get("CASEMATE_DATA_DIR")
    running = None if is_named else next(iter(discovery.running()), None)
    return Path(running["data_dir"]) if running else load(config_file).data_dir


def database(config_file: Path | None) -> Database:
    """The database of a configuration, else of the environment, else of the service running here."""
    from core.config import Config
    from models.base import Database

    path = Config(data_dir=data_dir(config_file)).database
    # Never made here: a wrong folder would get a database that no service reads.
    if not path.exists() or not _has_accounts(path):
        raise NotFound(
            f"{path} holds no accounts; name the service's file with -c, or run `casemate db upgrade`"
        )
    return Database(path)


def _has_accounts(path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        asked = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'tokens'"
        return connection.execute(asked).fetchone() is not None
