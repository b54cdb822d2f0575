"""`casemate doctor` and `casemate check-config`: what this host can do, and what a file says."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path

import click

CONFIG = click.option(
    "-c", "--config", "config_file", type=click.Path(path_type=Path), help="TOML."
)


@click.command()
@CONFIG
@click.option("--json", "as_json", is_flag=True)
def doctor(config_file: Path | None, as_json: bool) -> None:
    """Say what this host can and cannot do, and what to do about it."""
    from cli.serve import prepare_data_dir
    from core import config
    from vmm.doctor import examine

    loaded = config.load(config_file)
    prepare_data_dir(loaded.data_dir)
    findings = examine(loaded)
    if as_json:
        click.echo(json.dumps([asdict(each) for each in findings], indent=2))
    else:
        for each in findings:
            mark = {"ok": "✓", "limited": "–", "missing": "✗"}[each.state]
            advice = f"  ({each.advice})" if each.advice else ""
            click.echo(f"{mark} {each.name:12} {each.what}{advice}")
    sys.exit(1 if any(each.state == "missing" for each in findings) else 0)


@click.command(name="check-config")
@CONFIG
def check_config(config_file: Path | None) -> None:
    """Read a configuration file as `serve` would, without starting anything."""
    import logging

    from core import config

    # Warnings on unknown keys go to standard error, as sentences.
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    loaded = config.load(config_file)
    click.echo(f"address   {loaded.address}")
    click.echo(f"data_dir  {loaded.data_dir}")
    click.echo(f"images    {loaded.image.path}")
    click.echo(f"QEMU      {loaded.cvm.qemu_path or 'not found'}")
    click.echo("the configuration is valid")
