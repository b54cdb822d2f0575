"""The data disk: LUKS2 under a key of the app, ext4 inside, and what lives on it.

Source: guest-image.md section 9.
"""

from __future__ import annotations

import hmac
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from core import files
from core.errors import Invalid
from core.proc import run
from guest import share
from guest.settings import DATA_MOUNT

DEFAULT_FS = "ext4"
MAPPER_NAME = "casemate-data"
MAPPED = Path("/dev/mapper") / MAPPER_NAME
# The key is random, not a passphrase: slow derivation would cost boot time and protect nothing.
PBKDF2_ITERATIONS = 1000
CIPHER = "aes-xts-plain64"
KEY_BITS = 512
# What a LUKS2 header and its key slots take (guest-image.md section 9).
HEADER_SIZE = 16 * 1024 * 1024
LABEL_NEW, LABEL_READY = "casemate-new", "casemate-data"
# Inside, to be found by whoever has the key.
MARKER = ".casemate-disk"
_MARKER_TEXT = b"casemate data disk"
# LUKS2 on-disk format, section 2.1: magic, and the label in the binary header.
_LUKS_MAGIC = b"LUKS\xba\xbe"
_LABEL_AT = slice(24, 72)
_LOOKED_AT = 4096
# Without delayed allocation a file's bytes reach the disk no later than its name: a machine that loses its power
# finds what it had some seconds before, and no empty files that the container store cannot read.
_MOUNT_OPTIONS = "noatime,nodelalloc"
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


def prepare(device: Path, key: bytes, state: Path, *, is_lasting: bool) -> None:
    """Opens the disk under a 32-byte key and mounts it, made anew where there is nothing to keep.

    Nothing is kept of a boot whose key was its own (`is_lasting` off).  A copy of the header lies in the folder
    `state` (RAM) meanwhile.  Raises Invalid when the disk holds what is not this app's, and CommandFailed.
    """
    marker = hmac.digest(key, _MARKER_TEXT, "sha256").hex()
    header = state / "data-header"
    if is_lasting and not _is_blank(device, header):
        _check_header(header)
        _unlock(device, key, header)
        mount()
        _check_marker(marker)
        # The disk may have been made larger while the VM was off.
        run(["resize2fs", MAPPED])
    else:
        make(device, key)
        mount()
        files.write_atomic(DATA_MOUNT / MARKER, marker)
        # Only now is there something to keep: a boot that was cut off before this begins again.
        run(["cryptsetup", "config", device, "--label", LABEL_READY])
    header.unlink(missing_ok=True)


def _is_blank(device: Path, header: Path) -> bool:
    """Whether the disk is new or was never finished; copies its first 16 MiB, for the host may change them
    between our look and our use."""
    with device.open("rb") as disk:
        copy = disk.read(HEADER_SIZE)
    if not any(copy[:_LOOKED_AT]):
        return True
    if not copy.startswith(_LUKS_MAGIC):
        raise Invalid("the data disk holds something that is not this app's encrypted disk")
    files.write_atomic(header, copy)
    return _metadata(header).get("label") == LABEL_NEW


def _metadata(header: Path) -> Mapping[str, Any]:
    dump = run(["cryptsetup", "luksDump", "--dump-json-metadata", header]).stdout
    found: Mapping[str, Any] = json.loads(dump)
    # The label stands in the binary part.
    label = header.read_bytes()[_LABEL_AT].rstrip(b"\0").decode("ascii", "replace")
    return {**found, "label": label}


def _check_header(header: Path) -> None:
    """Refuses (Invalid) a header that would have us write in the clear or under a weaker cipher.

    It is not authenticated, and a disk with another cipher in its header opens with the same key.
    """
    found = _metadata(header)
    segments, slots = list(found["segments"].values()), list(found["keyslots"].values())
    ciphers = [segment.get("encryption") for segment in segments]
    ciphers += [slot["area"].get("encryption") for slot in slots]
    sizes = [slot.get("key_size") for slot in slots]
    kinds = [part.get("type") for part in (*segments, *slots)]
    # One that asks for a re-encryption to be finished would have data written in the clear.
    is_plain = kinds == ["crypt", "luks2"] and not found["config"].get("requirements")
    if not is_plain or set(ciphers) != {CIPHER} or sizes != [KEY_BITS // 8] or found["tokens"]:
        raise Invalid(
            "the header of the data disk was changed: its cipher is not the one it was made with"
        )


def _check_marker(expected: str) -> None:
    try:
        found = files.read_capped(DATA_MOUNT / MARKER, len(expected))
    except FileNotFoundError:
        found = b""
    if not hmac.compare_digest(found, expected.encode()):
        raise Invalid("the data disk is not the one that this instance of the app made")


def make(device: Path, key: bytes) -> None:
    """Encrypts the disk anew under a 32-byte key and puts an empty file system on it, open as MAPPED.

    Everything that was on it is lost.
    """
    run(
        ["cryptsetup", "luksFormat", "--batch-mode", "--type", "luks2", "--label", LABEL_NEW]
        + ["--cipher", CIPHER, "--key-size", str(KEY_BITS), "--pbkdf", "pbkdf2"]
        + ["--pbkdf-force-iterations", str(PBKDF2_ITERATIONS), "--key-file", "-", device],
        input=key,
    )
    _unlock(device, key, device)
    # By its full path: busybox has an applet of the same name that knows no ext4.
    run(
        ["/usr/sbin/mke2fs", "-q", "-F", "-t", DEFAULT_FS, "-m", "0"]
        + ["-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard", MAPPED]
    )


def _unlock(device: Path, key: bytes, header: Path) -> None:
    run(
        ["cryptsetup", "open", "--type", "luks2", "--key-file", "-"]
        + ["--header", str(header), str(device), MAPPER_NAME],
        input=key,
    )


def mount() -> None:
    """Mounts the open disk and what is to lie on it."""
    DATA_MOUNT.mkdir(exist_ok=True)
    run(["mount", "-t", DEFAULT_FS, "-o", _MOUNT_OPTIONS, MAPPED, DATA_MOUNT])
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
