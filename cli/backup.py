"""`casemate backup` and `casemate restore`: what a host would need to have the same VMs again, in one file.

The file is a plain tar: `casemate-backup.json` first, then the database, then what the data directory keeps.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import sqlite3
import tarfile
import tempfile
import time
from collections.abc import Iterator
from fnmatch import fnmatchcase
from io import BytesIO
from pathlib import Path
from typing import IO

import click

from core.config import Config
from core.errors import Conflict, Invalid, NotFound
from core.files import locked, sync_directory
from vmm import process
from vmm.workdir import WorkDir

ABOUT = "casemate-backup.json"
FORMAT = 1
_ABOUT_MAX = 1024**2
# Of the data directory: images are built again, the rest belongs to processes or to this very host.  The
# database is copied by SQLite.
LEFT_OUT = (
    *("images", "*.log", "*.log.*", "*.lock", "*.pid", "*.new", "*.part", "*.db", "*.db-*"),
    *("kvm-probe.json", "serve.json"),
)
# Of a VM's folder: what its owner or its guest gave, which no start of the VM could make again.
OF_A_VM = ("shared", "swtpm", "vm-manifest.json", "vm-state.json")
_PART = re.compile(r"[A-Za-z0-9._@+-]{1,255}")


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("-c", "--config", "config_file", type=click.Path(path_type=Path), help="TOML file.")
@click.option("--disks", is_flag=True, help="Also the data disks of VMs that do not run.")
def backup(file: Path, config_file: Path | None, disks: bool) -> None:
    """Save the VMs, accounts and keys of this host into FILE; the service may run meanwhile.

    FILE has the secrets of the host in it and is made for its owner alone (0600).  Images are left out: build or
    fetch them again.
    """
    from core import config

    loaded = config.load(config_file)
    ids, without = save(loaded, file, disks=disks)
    click.echo(f"{file}: {len(ids)} VMs, {len(ids) - len(without)} data disks")
    if disks and without:
        click.echo(
            f"no disk was saved of VMs that run or never ran: {', '.join(without)}", err=True
        )


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--data-dir", type=click.Path(path_type=Path), required=True, help="A new directory.")
def restore(file: Path, data_dir: Path) -> None:
    """Make a data directory from a file that `casemate backup` wrote."""
    about = load(file, data_dir)
    click.echo(f"{data_dir}: {len(about['vms'])} VMs, {len(about['disks'])} data disks")
    click.echo(f"install the images they name, then: CASEMATE_DATA_DIR={data_dir} casemate serve")


def save(config: Config, file: Path, *, disks: bool) -> tuple[list[str], list[str]]:
    """Writes a backup, whole or not at all; the ids of its VMs, and of those without their disk."""
    if not config.database.exists():
        raise NotFound(f"{config.data_dir} has no database: nothing to save")
    if file.exists():
        raise Conflict(f"{file} exists already; name a new file")
    if file.absolute().is_relative_to(config.data_dir):
        raise Invalid("FILE must lie outside of the data directory")
    with tempfile.TemporaryDirectory(dir=file.absolute().parent, prefix=".casemate-") as folder:
        database, partial = Path(folder) / "casemate.db", Path(folder) / file.name
        ids = _copy_database(config.database, database)
        with (
            _saved_disks(config, ids if disks else []) as saved,
            tarfile.open(partial, "x:", format=tarfile.PAX_FORMAT) as archive,
        ):
            partial.chmod(0o600)
            about = {"format": FORMAT, "made_s": int(time.time()), "vms": ids, "disks": saved}
            _add_text(archive, ABOUT, json.dumps(about))
            archive.add(database, "casemate.db", filter=_plain)
            for name, path in _members(config, ids, saved):
                with contextlib.suppress(FileNotFoundError):  # removed just now
                    archive.add(path, name, recursive=False, filter=_plain)
        with open(partial, "rb") as written:
            os.fsync(written.fileno())
        os.link(partial, file)  # never over another file
    sync_directory(file.absolute().parent)
    return ids, [vm_id for vm_id in ids if vm_id not in saved]


def load(file: Path, data_dir: Path) -> dict[str, list[str]]:
    """Makes a data directory out of a backup, whole or not at all; what the backup says of itself."""
    import migrations

    if data_dir.exists() and any(data_dir.iterdir()):
        raise Conflict(f"{data_dir} is not empty; name a new directory")
    parent = data_dir.absolute().parent
    parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    folder = Path(tempfile.mkdtemp(dir=parent, prefix=".casemate-"))  # 0700
    try:
        about = _extract(file, folder)
        _check_database(folder / "casemate.db")
        migrations.upgrade(folder / "casemate.db")
        os.rename(folder, data_dir)  # over an empty directory at most
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    sync_directory(parent)
    return about


def _copy_database(source: Path, target: Path) -> list[str]:
    with (
        contextlib.closing(sqlite3.connect(source)) as live,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        live.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, without a log beside it
        return [row[0] for row in copy.execute("SELECT id FROM vms ORDER BY created_ms, id")]


@contextlib.contextmanager
def _saved_disks(config: Config, ids: list[str]) -> Iterator[list[str]]:
    """The VMs whose disks may be read: at rest, and kept so by their locks."""
    with contextlib.ExitStack() as held:
        saved = []
        for vm_id in ids:
            workdir = WorkDir(config.run_path / vm_id)
            with contextlib.suppress(Conflict, FileNotFoundError):
                if not workdir.data_disk.exists():
                    continue
                lock = contextlib.ExitStack()
                lock.enter_context(locked(workdir.lock, timeout_s=1))
                with lock:
                    if not process.is_locked(workdir.path):
                        held.push(lock.pop_all())
                        saved.append(vm_id)
        yield saved


def _members(config: Config, ids: list[str], disks: list[str]) -> Iterator[tuple[str, Path]]:
    for path in _files(config.data_dir, but=config.run_path):
        yield str(path.relative_to(config.data_dir)), path
    for vm_id in ids:
        folder = config.run_path / vm_id
        of_it = (*OF_A_VM, "hda.img") if vm_id in disks else OF_A_VM
        for top in of_it:
            found = [folder / top] if (folder / top).is_file() else _files(folder / top)
            for path in found:
                yield f"vm/{vm_id}/{path.relative_to(folder)}", path


def _files(folder: Path, but: Path | None = None) -> Iterator[Path]:
    try:
        found = sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):  # there is none, or it was removed just now
        return
    for path in found:
        if path == but or path.is_symlink() or any(fnmatchcase(path.name, p) for p in LEFT_OUT):
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path


def _plain(member: tarfile.TarInfo) -> tarfile.TarInfo | None:
    # Neither owners nor modes: the restored files belong to whoever restores them.
    member.uid = member.gid = 0
    member.uname = member.gname = ""
    member.mode = 0o600
    return member if member.isreg() else None


def _add_text(archive: tarfile.TarFile, name: str, text: str) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode, member.mtime = len(text.encode()), 0o600, int(time.time())
    archive.addfile(member, BytesIO(text.encode()))


def _extract(file: Path, folder: Path) -> dict[str, list[str]]:
    about: dict[str, list[str]] | None = None
    try:
        with tarfile.open(file, "r:") as archive:
            for member in archive:
                content = archive.extractfile(member) if member.isreg() else None
                if content is None or member.issparse():
                    raise Invalid(f"{file}: {member.name!r} is no plain file")
                if about is None:
                    about = _about(file, member, content)
                else:
                    _write(folder, member, content)
    except (tarfile.TarError, EOFError) as error:
        raise Invalid(f"{file} is not a whole backup: {error}") from None
    except FileExistsError as error:
        raise Invalid(f"{file} has {error.filename} twice") from None
    if about is None:
        raise Invalid(f"{file} is empty")
    return about


def _about(file: Path, member: tarfile.TarInfo, content: IO[bytes]) -> dict[str, list[str]]:
    try:
        about = json.loads(content.read(_ABOUT_MAX)) if member.name == ABOUT else None
    except ValueError:
        about = None
    if not isinstance(about, dict) or about.get("format") != FORMAT:
        raise Invalid(f"{file} is not a backup that this release of Casemate can read")
    return about


def _write(folder: Path, member: tarfile.TarInfo, content: IO[bytes]) -> None:
    parts = member.name.split("/")
    # Nothing but names of ours: no way up, no absolute path, no hidden meaning of a character.
    if any(not _PART.fullmatch(part) or part in (".", "..") for part in parts):
        raise Invalid(f"the backup has a file of a name that it cannot have: {member.name!r}")
    path = folder.joinpath(*parts)
    for above in range(1, len(parts)):
        folder.joinpath(*parts[:above]).mkdir(mode=0o700, exist_ok=True)
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as out:
        shutil.copyfileobj(content, out)
        if out.tell() != member.size:
            raise Invalid(f"the backup ends within {member.name}")
        out.flush()
        os.fsync(out.fileno())


def _check_database(path: Path) -> None:
    try:
        with contextlib.closing(sqlite3.connect(path)) as copy:
            said = [row[0] for row in copy.execute("PRAGMA integrity_check")]
            copy.execute("SELECT id FROM vms").fetchall()
    except sqlite3.DatabaseError as error:
        raise Invalid(f"the database of the backup cannot be read: {error}") from None
    if said != ["ok"]:
        raise Invalid(f"the database of the backup is damaged: {said[0]}")
