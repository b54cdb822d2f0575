"""The host's shared folder: found, mounted read-only, copied within limits, unmounted.

The host may change the disk while we read it, so everything is copied first and read from the copy.
Source: guest-agent.md section 10, vmm.md section 6 (names and limits), quality.md section 5.2.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from core import files
from core.errors import Invalid
from core.proc import run
from guest import identity

LABEL = b"DSTACKSHR"
TAG_9P = "host-shared"
WAIT_S = 5.0
_MIB = 1024 * 1024
# Name -> most bytes taken.  `config.json` and `encrypted-env` are the names before dstack 0.5.
FILES: Mapping[str, int] = {
    "app-compose.json": identity.MAX_COMPOSE,
    ".sys-config.json": identity.MAX_SYS_CONFIG,
    "config.json": identity.MAX_SYS_CONFIG,
    ".instance_info": identity.MAX_INSTANCE_INFO,
    ".encrypted-env": 256 * 1024,
    "encrypted-env": 256 * 1024,
    ".user-config": 50 * _MIB,
    ".tee-simulator.json": 16 * 1024,
}
_TODAYS_NAMES = {"config.json": ".sys-config.json", "encrypted-env": ".encrypted-env"}
# Microsoft FAT specification, section 3: the label in a FAT12/16 and in a FAT32 boot sector.
_LABEL_OFFSETS = (43, 71)
_LABEL_SIZE = 11
_SECTOR = 512


def copy_in(mount_point: Path, target: Path, root: Path = Path("/")) -> None:
    """Copies the host's files to `target` (0700, files 0600), mounting them at `mount_point` meanwhile.

    Raises Invalid when there is no shared folder, no app-compose.json in it, or a file is not a plain
    one, and TooLarge when one is over its limit.
    """
    with _mounted(mount_point, root):
        copy(mount_point, target)


def copy(source: Path, target: Path) -> None:
    """Copies the files that a guest takes from `source`, following no link; names of old become today's."""
    target.mkdir(mode=0o700, parents=True, exist_ok=True)
    for name, limit in FILES.items():
        try:
            content = files.read_capped(source / name, limit)
        except FileNotFoundError:
            continue
        destination = target / _TODAYS_NAMES.get(name, name)
        if name in _TODAYS_NAMES and destination.exists():
            continue
        files.write_atomic(destination, content)
    if not (target / "app-compose.json").exists():
        raise Invalid("the host's shared folder holds no app-compose.json")


@contextlib.contextmanager
def _mounted(mount_point: Path, root: Path) -> Iterator[None]:
    mount_point.mkdir(mode=0o700, parents=True, exist_ok=True)
    device = _wait_for_disk(root)
    if device is not None:
        kind, source, options = "vfat", str(device), "ro"
    else:
        kind, source, options = "9p", TAG_9P, "ro,trans=virtio,version=9p2000.L"
    run(["mount", "-t", kind, "-o", f"{options},nosuid,nodev,noexec", source, mount_point])
    try:
        yield
    finally:
        run(["umount", mount_point])


def _wait_for_disk(root: Path) -> Path | None:
    has_9p = any((root / "sys/bus/virtio/drivers/9pnet_virtio").glob("virtio*"))
    deadline = time.monotonic() + (0 if has_9p else WAIT_S)
    while (device := find_disk(root)) is None:
        if has_9p:
            return None
        if time.monotonic() >= deadline:
            raise Invalid(f"there is no disk labelled {LABEL.decode()} and no 9p share {TAG_9P}")
        time.sleep(0.02)
    return device


def find_disk(root: Path = Path("/")) -> Path | None:
    """The disk or partition whose FAT label is DSTACKSHR; None when there is none."""
    for entry in sorted((root / "sys/class/block").glob("vd*")):
        device = root / "dev" / entry.name
        if has_label(device):
            return device
    return None


def has_label(device: Path) -> bool:
    """Whether a device starts with a FAT boot sector that bears our label."""
    try:
        with device.open("rb") as file:
            sector = file.read(_SECTOR)
    except OSError:
        return False
    padded = LABEL.ljust(_LABEL_SIZE)
    is_boot_sector = sector[510:512] == b"\x55\xaa"
    return is_boot_sector and any(
        sector[offset : offset + _LABEL_SIZE] == padded for offset in _LABEL_OFFSETS
    )
