"""`casemate db`: the database's schema."""

from __future__ import annotations

from pathlib import Path

import click


@click.group()
def db() -> None:
    """The database."""


@db.command()
@click.option("-c", "--config", "config_file", type=click.Path(path_type=Path), help="TOML file.")
def upgrade(config_file: Path | None) -> None:
    """Brings the database to this release's schema, making it when absent."""
    import migrations
    from core import config

    loaded = config.load(config_file)
    migrations.upgrade(loaded.database)
    click.echo(f"{loaded.database} is up to date")
