"""`casemate image`: builds, lists and removes guest images, and renews the lock file they are built from."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path

import click


@click.group()
def image() -> None:
    """Guest OS images."""


@image.command()
@click.option("--dev", is_flag=True, help="The variant with a root shell on the serial console.")
@click.option(
    "-c", "--config", "config_file", type=click.Path(path_type=Path, dir_okay=False, exists=True)
)
def build(dev: bool, config_file: Path | None) -> None:
    """Build the guest image, unless an identical one is cached, install it and print its folder."""
    from core.config import cache_dir, load
    from image.build import Variant, install
    from image.build import build as build_image

    variant = Variant.DEV if dev else Variant.PRODUCTION
    cached = build_image(variant, cache_dir(), _Steps().show)
    click.echo(install(cached, load(config_file).image.path))


@image.command()
@click.option("--json", "as_json", is_flag=True, help="One JSON list instead of a table.")
@click.option(
    "-c", "--config", "config_file", type=click.Path(path_type=Path, dir_okay=False, exists=True)
)
def ls(as_json: bool, config_file: Path | None) -> None:
    """List the installed images; folders that are none are named on standard error."""
    from core.config import load
    from image.registry import broken_images, list_images

    path = load(config_file).image.path
    images = list_images(path)
    if as_json:
        rows = [
            {
                "name": i.name,
                "version": i.version,
                "is_dev": i.is_dev,
                "digest": i.digest,
                "path": str(i.directory),
            }
            for i in images
        ]
        click.echo(json.dumps(rows, indent=2))
    else:
        for found in images:
            kind = "dev" if found.is_dev else "production"
            click.echo(f"{found.name:32} {found.version:10} {kind:10} {found.digest}")
    for reason in broken_images(path).values():
        click.echo(reason, err=True)


@image.command()
@click.argument("name")
@click.option(
    "-c", "--config", "config_file", type=click.Path(path_type=Path, dir_okay=False, exists=True)
)
def rm(name: str, config_file: Path | None) -> None:
    """Remove an installed image; the cache keeps what it was built from."""
    from core.config import load
    from image.registry import remove

    remove(load(config_file).image.path, name)


@image.command()
def lock() -> None:
    """Take the current package versions of Debian and PyPI into the lock file."""
    from image.packages import LOCK_FILE
    from image.resolve import lock as renew

    packages = renew(_Steps().show)
    click.echo(f"{len(packages)} packages in {LOCK_FILE}")


class _Steps:
    """Shows a build on standard error: each step once, with the seconds since the start, downloads in per cent."""

    def __init__(self) -> None:
        self._start = time.monotonic()
        self._is_terminal = sys.stderr.isatty()
        self._last = ""

    def show(self, step: str, fraction: float | None, text: str) -> None:
        """Prints one report of progress; on a terminal, reports of one step share a line."""
        share = "" if fraction is None else f" {fraction:4.0%}"
        line = f"{time.monotonic() - self._start:6.1f} s  {step}{share}  {text}"
        if not self._is_terminal:
            click.echo(line, err=True)
            return
        if self._last not in ("", step):
            click.echo(err=True)
        click.echo(f"\r\x1b[K{line}", err=True, nl=fraction == 1.0)
        self._last = "" if fraction == 1.0 else step
