"""The disks that the host makes for a VM: an empty qcow2 and the FAT share."""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator
from pathlib import Path

from core import faults
from core.proc import CommandFailed, run

GIB = 1024**3
# The smallest share; it grows with what it must hold (app-compose and user config: 50 MiB each).
_SHARE_MIB = 4
# What stock dstack guests look for (guest-image.md section 8).
SHARE_LABEL = "DSTACKSHR"


def create_data_disk(path: Path, size_gb: int, backing: Path | None = None) -> None:
    """Makes a sparse qcow2 of `size_gb` GiB by rename; an existing one is kept."""
    if path.exists():
        return
    extra = ["-b", os.fspath(backing), "-F", "qcow2"] if backing else []
    with _whole(path) as temporary:
        run(["qemu-img", "create", "-q", "-f", "qcow2", *extra, temporary, str(size_gb * GIB)])
        faults.point("disk.made")


def grow_data_disk(path: Path, size_gb: int) -> None:
    """Makes an existing data disk `size_gb` GiB large; safe to repeat, never smaller.

    One may be larger than its record: an update was killed after this and before its commit.
    """
    if path.exists() and _virtual_size(path) < size_gb * GIB:
        run(["qemu-img", "resize", "-q", "-f", "qcow2", path, str(size_gb * GIB)])


def _virtual_size(path: Path) -> int:
    # QEMU, docs/interop/qcow2.txt: bytes 24 to 31 of the header.
    with open(path, "rb") as disk:
        return int.from_bytes(disk.read(32)[24:], "big")


def create_share(path: Path, folder: Path) -> None:
    """Copies the files of `folder` into a FAT file system labelled DSTACKSHR, by rename."""
    files = sorted(entry for entry in folder.iterdir() if entry.is_file())
    # Room for the content, two tables and a cluster of slack a file.
    need_mib = (
        sum(entry.stat().st_size for entry in files) * 21 // 20 // 1024**2 + len(files) // 64 + 1
    )
    size_kib = max(_SHARE_MIB, need_mib + 1) * 1024
    with _whole(path) as temporary:
        run(["mformat", "-C", "-T", str(size_kib * 2), "-v", SHARE_LABEL, "-i", temporary, "::"])
        if files:
            run(["mcopy", "-i", temporary, *files, "::"])
        temporary.chmod(0o600)
        faults.point("disk.shared")


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A temporary name for a file that is at `path` once it is complete; nothing is left of one that is not."""
    temporary = path.with_suffix(".new")
    temporary.unlink(missing_ok=True)
    try:
        yield temporary
        os.replace(temporary, path)
    except CommandFailed as error:
        if os.strerror(errno.ENOSPC) in error.output:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path) from None
        raise
    finally:
        temporary.unlink(missing_ok=True)
