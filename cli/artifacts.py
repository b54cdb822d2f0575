"""`casemate artifacts`: the registry of SecretVM builds by which VMs are recognised."""

from __future__ import annotations

import re
from pathlib import Path

import click

from cli.directory import AS_JSON, CONFIG
from cli.terminal import Steps, print_json, print_table

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.(csv|json)")


@click.group()
def artifacts() -> None:
    """The registry of builds by which VMs are recognised."""


@artifacts.command()
def fetch() -> None:
    """Fetch what was published, as make setup does: a pinned version, from PyPI."""
    from core.config import cache_dir
    from image.published import install
    from secretvm.builds import PUBLISHED

    steps = Steps()
    try:
        install(PUBLISHED, cache_dir() / "debs", steps.show)
    finally:
        steps.end()
    click.echo(PUBLISHED)


@artifacts.command(name="import")
@click.argument(
    "files",
    nargs=-1,
    required=True,
    metavar="FILE...",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
)
@CONFIG
def import_files(files: tuple[Path, ...], config_file: Path | None) -> None:
    """Check registry files and add them to those of the service, which knows them at once.

    FILE is a .csv in the form of the published tdx.csv, or a .json in that of sev.json; one of the same name is replaced.
    """
    from attest.artifacts import MAX_FILE, parse
    from core.errors import Invalid
    from core.files import write_atomic
    from secretvm.builds import imported

    contents = {}
    for file in files:
        if not _NAME.fullmatch(file.name):
            raise Invalid(f"{file.name}: must be named like tdx-2026.csv or sev.json")
        if file.stat().st_size > MAX_FILE:
            raise Invalid(f"{file.name}: must have at most {MAX_FILE} bytes")
        content = file.read_bytes()
        contents[file.name] = content, parse(file.name, content)
    folder = imported(_data_dir(config_file))
    folder.mkdir(mode=0o700, exist_ok=True)
    for name, (content, found) in contents.items():
        write_atomic(folder / name, content)
        click.echo(f"{name}: {len(found.tdx) + len(found.sev)} builds")


@artifacts.command()
@CONFIG
@AS_JSON
def ls(config_file: Path | None, as_json: bool) -> None:
    """List the registry's files and how many builds each names."""
    from attest.artifacts import parse
    from secretvm.builds import PUBLISHED, imported

    rows = []
    for folder in (PUBLISHED, imported(_data_dir(config_file))):
        for path in sorted(folder.glob("*.csv")) + sorted(folder.glob("*.json")):
            found = parse(path.name, path.read_bytes())
            rows.append((path, len(found.tdx), len(found.sev)))
    if as_json:
        print_json([{"path": str(path), "tdx": tdx, "sev": sev} for path, tdx, sev in rows])
    else:
        print_table(("FILE", "TDX", "SEV-SNP"), [(str(p), str(t), str(s)) for p, t, s in rows])


def _data_dir(config_file: Path | None) -> Path:
    from cli.directory import data_dir
    from core.errors import NotFound

    path = data_dir(config_file)
    if not path.is_dir():
        raise NotFound(f"{path} is no data directory; name the service's file with -c")
    return path
