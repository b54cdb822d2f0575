"""The data disk: LUKS2 under a key of the app, ext4 inside, and what lives on it.

Source: guest-image.md section 9.
"""

from __future__ import annotations

from pathlib import Path

from core.errors import Invalid
from core.proc import run
from guest import share
from guest.settings import DATA_MOUNT

DEFAULT_FS = "ext4"
MAPPER_NAME = "casemate-data"
MAPPED = Path("/dev/mapper") / MAPPER_NAME
# The key is random, not a passphrase: slow derivation would cost boot time and protect nothing.
PBKDF2_ITERATIONS = 1000
# What stands on the data disk -> where programs and apps look for it.
BINDS = {
    "containers": Path("/var/lib/containers"),
    "persistent": Path("/dstack/persistent"),
}


def find(root: Path = Path("/")) -> Path:
    """The data disk: the first virtio disk that can be written and is not the host's share.

    Raises Invalid when there is none.
    """
    for entry in sorted((root / "sys/block").glob("vd*")):
        device = root / "dev" / entry.name
        writable = (entry / "ro").read_text().strip() == "0"
        if writable and not share.has_label(device):
            return device
    raise Invalid("this VM has no data disk")


def check_fs(storage_fs: str) -> str:
    """The file system an app asks for; Invalid when this image cannot make it."""
    if storage_fs not in ("", DEFAULT_FS):
        raise Invalid(f"storage_fs {storage_fs} is not in this image, {DEFAULT_FS} is")
    return DEFAULT_FS


def make(device: Path, key: bytes) -> None:
    """Encrypts the disk anew under a 32-byte key and puts an empty file system on it.

    Everything that was on it is lost: right when the key is as new as the boot (provider none).
    """
    run(
        ["cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2"]
        + ["--cipher", "aes-xts-plain64", "--key-size", "512", "--pbkdf", "pbkdf2"]
        + ["--pbkdf-force-iterations", str(PBKDF2_ITERATIONS), "--key-file", "-", device],
        input=key,
    )
    unlock(device, key)
    # By its full path: busybox has an applet of the same name that knows no ext4.
    run(
        ["/usr/sbin/mke2fs", "-q", "-F", "-t", DEFAULT_FS, "-m", "0"]
        + ["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", MAPPED]
    )


def unlock(device: Path, key: bytes) -> None:
    """Opens the encrypted disk; CommandFailed when the key is not its."""
    run(
        ["cryptsetup", "open", "--type", "luks2", "--key-file", "-", device, MAPPER_NAME], input=key
    )


def mount() -> None:
    """Mounts the open disk and what is to lie on it."""
    DATA_MOUNT.mkdir(exist_ok=True)
    run(["mount", "-t", DEFAULT_FS, "-o", "noatime", MAPPED, DATA_MOUNT])
    for name, place in BINDS.items():
        (DATA_MOUNT / name).mkdir(mode=0o711, exist_ok=True)
        place.mkdir(parents=True, exist_ok=True)
        run(["mount", "--bind", DATA_MOUNT / name, place])


def close(mounts: str) -> None:
    """Unmounts the disk and forgets its key; `mounts` is the text of /proc/mounts.

    What cannot be unmounted is left: the machine is about to end.
    """
    places = (str(DATA_MOUNT), *map(str, BINDS.values()))
    points = [line.split()[1] for line in mounts.splitlines()]
    for point in reversed(points):
        if any(point == place or point.startswith(f"{place}/") for place in places):
            run(["umount", point], check=False, timeout_s=5)
    if MAPPED.exists():
        run(["cryptsetup", "close", MAPPER_NAME], check=False, timeout_s=5)
