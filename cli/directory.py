"""The database that `casemate user`, `token` and `project` work on, whether the service runs or not."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import click

from core.errors import NotFound

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

CONFIG = click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The service's TOML file.",
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")


@contextlib.contextmanager
def reading(config_file: Path | None) -> Iterator[Session]:
    """A session that changes nothing."""
    from models.base import Database

    with Database(_path(config_file)).reading() as session:
        yield session


@contextlib.contextmanager
def writing(config_file: Path | None) -> Iterator[Session]:
    """A session that commits at the end of the block, or leaves nothing."""
    from models.base import Database

    with Database(_path(config_file)).writing() as session:
        yield session


def day(moment_ms: int | None) -> str:
    """A moment as people write it, in UTC; nothing for none."""
    return "" if moment_ms is None else time.strftime("%F %H:%MZ", time.gmtime(moment_ms / 1000))


def _path(config_file: Path | None) -> Path:
    """The database of a configuration, else of the environment, else of the service running here."""
    from core import config
    from vmm import discovery

    path = config.load(config_file).database
    if config_file is None and not os.environ.get("CASEMATE_DATA_DIR"):
        running = next((each for each in discovery.running() if each.get("data_dir")), None)
        path = Path(running["data_dir"]) / path.name if running else path
    # Never made here: a wrong folder would get a database that no service reads.
    if not path.exists() or not _has_accounts(path):
        raise NotFound(
            f"{path} holds no accounts; name the service's file with -c, or run `casemate db upgrade`"
        )
    return path


def _has_accounts(path: Path) -> bool:
    with contextlib.closing(sqlite3.connect(path)) as connection:
        asked = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'tokens'"
        return connection.execute(asked).fetchone() is not None
