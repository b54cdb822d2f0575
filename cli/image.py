"""`casemate image`: builds, lists and removes guest images, and renews the lock file they are built from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from cli.completion import images
from cli.terminal import Steps, print_json, print_table

if TYPE_CHECKING:
    from image.registry import Image

CONFIG = click.option(
    "-c", "--config", "config_file", type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="TOML file.  Default: that of the running service.",
)  # fmt: skip
AS_JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")


@click.group()
def image() -> None:
    """Guest OS images."""


@image.command()
@click.option("--dev", is_flag=True, help="The variant with a root shell on the serial console.")
@click.option(
    "--sev-firmware",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="An OVMF with a table of kernel hashes, for SEV-SNP hosts.",
)
@CONFIG
@AS_JSON
def build(dev: bool, sev_firmware: Path | None, config_file: Path | None, as_json: bool) -> None:
    """Build the guest image, unless an identical one is cached, install it and print its folder."""
    from core.config import cache_dir
    from image.build import Variant, install
    from image.build import build as build_image
    from image.registry import load

    variant, steps = (Variant.DEV if dev else Variant.PRODUCTION), Steps()
    try:
        cached = build_image(variant, cache_dir(), steps.show, sev_firmware)
    finally:
        steps.end()
    installed = install(cached, folder(config_file))
    if as_json:
        print_json(_described(load(installed.parent, installed.name)))
    else:
        click.echo(installed)


@image.command()
@AS_JSON
@CONFIG
def ls(as_json: bool, config_file: Path | None) -> None:
    """List the installed images; folders that are none are named on standard error."""
    from image.registry import broken_images, list_images

    path = folder(config_file)
    found = list_images(path)
    if as_json:
        print_json([_described(each) for each in found])
    else:
        kinds = {True: "dev", False: "production"}
        rows = [(each.name, each.version, kinds[each.is_dev], each.digest) for each in found]
        print_table(("NAME", "VERSION", "KIND", "DIGEST"), rows)
    for reason in broken_images(path).values():
        click.echo(reason, err=True)


def _described(image: Image) -> dict[str, object]:
    return {
        "name": image.name,
        "version": image.version,
        "is_dev": image.is_dev,
        "digest": image.digest,
        "path": str(image.directory),
    }


@image.command()
@click.argument("name", shell_complete=images)
@CONFIG
@AS_JSON
def rm(name: str, config_file: Path | None, as_json: bool) -> None:
    """Remove an installed image; the cache keeps what it was built from.

    A service that runs on the same folder is asked, and refuses while one of its VMs needs the image.
    """
    from cli.client import Client
    from image.registry import remove
    from vmm import discovery

    path = folder(config_file)
    if any(entry.get("image_path") == str(path) for entry in discovery.running()):
        Client.found().call("prpc/DeleteImage", id=name)
    else:
        remove(path, name)
    if as_json:
        print_json({"name": name})


@image.command()
def lock() -> None:
    """Take the current package versions of Debian and PyPI into the lock file."""
    from image.packages import LOCK_FILE
    from image.resolve import lock as renew

    packages = renew(Steps().show)
    click.echo(f"{len(packages)} packages in {LOCK_FILE}")


def folder(config_file: Path | None) -> Path:
    """Where images are installed: as a file or the environment says, else where the running service looks."""
    from core.config import load
    from vmm import discovery

    if config_file is None and "CASEMATE_DATA_DIR" not in os.environ:
        for entry in discovery.running():
            if entry.get("image_path"):
                return Path(entry["image_path"])
    return load(config_file).image.path
