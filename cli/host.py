"""`casemate serve`, `doctor` and `check-config`: the service on this host, and what this host can do."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

import click

from cli.terminal import print_json

CONFIG = click.option(
    "-c", "--config", "config_file", type=click.Path(path_type=Path), help="TOML file."
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")


@click.command()
@CONFIG
@click.option("--parent", type=int, hidden=True, help="End when this process is not our parent.")
def serve(config_file: Path | None, parent: int | None) -> None:
    """Run the service in the foreground.

    CASEMATE_ADDRESS and CASEMATE_DATA_DIR win over the file; CASEMATE_ADMIN_TOKEN replaces the token that is
    otherwise made once and kept in DATA_DIR/admin-token.
    """
    from cli.serve import run

    run(config_file, parent)


@click.command()
@CONFIG
@AS_JSON
def doctor(config_file: Path | None, as_json: bool) -> None:
    """Say what this host can and cannot do, and what to do about it; 1 when it cannot run VMs."""
    from core import config
    from vmm.doctor import examine

    findings = examine(config.load(config_file))
    if as_json:
        print_json([asdict(each) for each in findings])
    else:
        for each in findings:
            mark = {"ok": "✓", "limited": "–", "missing": "✗"}[each.state]
            advice = f"  ({each.advice})" if each.advice else ""
            click.echo(f"{mark} {each.name:12} {each.what}{advice}")
    sys.exit(1 if any(each.state == "missing" for each in findings) else 0)


@click.command(name="check-config")
@CONFIG
@AS_JSON
def check_config(config_file: Path | None, as_json: bool) -> None:
    """Read a configuration file as `serve` would, without starting anything; 1 when it does not fit this host."""
    import logging

    from core import config
    from vmm.doctor import misfits, qemu

    # Warnings on unknown keys go to standard error, as sentences.
    logging.basicConfig(format="%(levelname)s: %(message)s", level=logging.WARNING)
    loaded = config.load(config_file)
    wrong = misfits(loaded)
    values = {
        "address": loaded.address,
        "data_dir": str(loaded.data_dir),
        "images": str(loaded.image.path),
        "QEMU": f"{loaded.cvm.qemu_path or 'none'} ({qemu(loaded).what})",
    }
    if as_json:
        print_json({**values, "wrong": wrong})
    else:
        for name, value in values.items():
            click.echo(f"{name:9} {value}")
        for sentence in wrong:
            click.echo(f"✗ {sentence}")
        if not wrong:
            click.echo("the configuration is valid")
    sys.exit(1 if wrong else 0)
