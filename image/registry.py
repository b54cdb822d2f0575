"""The images a host offers: one folder per image under `[image] path`, ours and stock dstack ones alike.

Format and refusals: vmm.md section 7.
"""

from __future__ import annotations

import functools
import json
import re
import secrets
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from core.config import ImageConfig
from core.errors import CasemateError, Invalid, NotFound, Unavailable
from image import manifest

# vmm.md section 3: 1-64 of these, no `..`; a leading dot is a folder in the making.
_NAME = re.compile(r"(?!.*\.\.)[A-Za-z0-9_-][A-Za-z0-9_.-]{0,63}")
_VERSION = re.compile(r"(\d{1,5})\.(\d{1,5})\.(\d{1,5})(?:[.+-].*)?")
_VERSION_IN_NAME = re.compile(r"-(\d+\.\d+\.\d+.*)$")
_ROOT_HASH = re.compile(r"(?:^|\s)dstack\.rootfs_hash=([0-9a-f]{64})(?:\s|$)")

# vmm.md section 7: the guest interface of older images is another one.
OLDEST = (0, 5, 0)
# What changed less than this ago is read anew.
RACY_NS = 50_000_000


@dataclass(frozen=True)
class Image:
    """A guest OS image that can be booted; every path is absolute and inside `directory`."""

    name: str
    directory: Path
    kernel: Path
    initrd: Path
    rootfs: Path | None
    cmdline: str
    bios: Path | None
    bios_sev: Path | None
    hda: Path | None
    version: str
    is_dev: bool
    shared_ro: bool
    ovmf_variant: str | None
    rootfs_hash: str
    digest: str
    metadata: str

    @property
    def is_ours(self) -> bool:
        """Whether Casemate built it, whatever its folder is called."""
        return str(json.loads(self.metadata).get("name", "")).startswith("casemate-")

    @property
    def version_key(self) -> tuple[int, ...]:
        """The version as numbers, for comparisons."""
        return _version_key(self.version)


def open_to_all(image: Image) -> None:
    """Lets every user of the host read an image, which is no secret: QEMU may run as any of them."""
    image.directory.chmod(0o755)
    for path in (image.kernel, image.initrd, image.rootfs, image.bios, image.bios_sev, image.hda):
        if path is not None:
            path.chmod(0o644)


def list_images(path: Path) -> list[Image]:
    """The images of a folder by name; broken ones are left out (see `broken_images`)."""
    return [entry for entry in _scan(path).values() if isinstance(entry, Image)]


def chosen(settings: ImageConfig, *, dev: bool = False) -> str:
    """The name of the image for whoever names none: the configured one, else the newest; Unavailable without any.

    With `dev` the newest dev image, where there is one; else a dev image only where there is no other.
    """
    known = sorted(list_images(settings.path), key=lambda image: image.version_key)
    by_kind = {
        kind: [image.name for image in known if image.is_dev is kind] for kind in (True, False)
    }
    if dev and by_kind[True]:
        return by_kind[True][-1]
    if settings.default:
        return settings.default
    if not known:
        raise Unavailable("this host has no image to boot; make one with `casemate image build`")
    return (by_kind[False] or by_kind[True])[-1]


def broken_images(path: Path) -> dict[str, str]:
    """The folders that are not usable images, each with the reason."""
    return {name: str(entry) for name, entry in _scan(path).items() if not isinstance(entry, Image)}


def load(path: Path, name: str) -> Image:
    """Reads the image `name` of the folder `path`.

    Raises NotFound when there is none, Invalid when the name or the image breaks a rule.
    """
    check_name(name)
    if not (path / name).is_dir():
        raise NotFound(f"image {name} not found")
    try:
        directory = (path / name).resolve()
        stamps = _stamps(directory)
        # A clock that ticks every few milliseconds may give two changes one time.
        if max((each[1] for each in stamps if each), default=0) > time.time_ns() - RACY_NS:
            return _read.__wrapped__(directory, name, stamps)
        return _read(directory, name, stamps)
    except CasemateError as error:
        raise Invalid(f"image {name}: {error.message}") from None


def check_name(name: str) -> None:
    """Raises Invalid unless `name` may name an image folder."""
    if not _NAME.fullmatch(name):
        raise Invalid.field(
            "image", "must be 1-64 of A-Z a-z 0-9 _ . - without a leading or double dot"
        )


def changed_files(image: Image) -> list[str]:
    """The files of an image whose bytes are not those its sha256sum.txt names."""
    return manifest.changed_files(image.directory)


def remove(path: Path, name: str) -> None:
    """Deletes an image folder as one step for everybody who looks; raises NotFound when there is none."""
    check_name(name)
    if (path / name).is_symlink():
        (path / name).unlink()
        return
    doomed = path / f".removed-{secrets.token_hex(8)}"
    try:
        (path / name).rename(doomed)
    except FileNotFoundError:
        raise NotFound(f"image {name} not found") from None
    shutil.rmtree(doomed)


def _scan(path: Path) -> dict[str, Image | str]:
    found: dict[str, Image | str] = {}
    if not path.is_dir():
        return found
    for entry in sorted(path.iterdir()):
        if entry.name.startswith(".") or not entry.is_dir():
            continue
        try:
            found[entry.name] = load(path, entry.name)
        except CasemateError as error:
            found[entry.name] = error.message
    return found


def _stamps(directory: Path) -> tuple[tuple[int, int, int] | None, ...]:
    """What is another one once a file of an image was added, removed, replaced or described anew."""
    found: list[tuple[int, int, int] | None] = []
    for path in (directory, *(directory / described for described in manifest.DESCRIBING)):
        try:
            is_now = path.stat()
        except OSError:
            found.append(None)
        else:
            found.append((is_now.st_ino, is_now.st_mtime_ns, is_now.st_size))
    return tuple(found)


@functools.lru_cache(maxsize=256)
def _read(directory: Path, name: str, stamps: tuple[tuple[int, int, int] | None, ...]) -> Image:
    metadata, text = manifest.read_metadata(directory)
    cmdline = _string(metadata, "cmdline") or ""
    return Image(
        name=name,
        directory=directory,
        kernel=_required(directory, metadata, "kernel"),
        initrd=_required(directory, metadata, "initrd"),
        rootfs=_rootfs(directory, metadata),
        cmdline=cmdline,
        bios=_file(directory, metadata, "bios"),
        bios_sev=_file(directory, metadata, "bios-sev"),
        hda=_file(directory, metadata, "hda"),
        version=_version(metadata, name),
        is_dev=_flag(metadata, "is_dev"),
        shared_ro=_flag(metadata, "shared_ro"),
        ovmf_variant=_string(metadata, "ovmf_variant"),
        rootfs_hash=_root_hash(metadata, cmdline),
        digest=manifest.digest(directory),
        metadata=text,
    )


def _required(directory: Path, metadata: Mapping[str, object], key: str) -> Path:
    path = _file(directory, metadata, key)
    if path is None:
        raise Invalid(f"{manifest.METADATA} does not name a {key}")
    return path


def _file(directory: Path, metadata: Mapping[str, object], key: str) -> Path | None:
    name = _string(metadata, key)
    if not name:
        return None
    if "\0" in name:
        raise Invalid(f"{key} is not a file name")
    try:
        path = (directory / name).resolve()
    except (OSError, RuntimeError):
        raise Invalid(f"{key} {name} cannot be resolved") from None
    if not path.is_relative_to(directory):
        raise Invalid(f"{key} {name} lies outside the image folder")
    if not path.is_file():
        raise Invalid(f"{key} {name} is missing or not a regular file")
    return path


def _rootfs(directory: Path, metadata: Mapping[str, object]) -> Path | None:
    path = _file(directory, metadata, "rootfs")
    # Upstream takes .iso for images before 0.5.0 only, and those are refused as a whole.
    if path is not None and path.suffix != ".verity":
        raise Invalid(f"rootfs {path.name} is not a .verity file")
    return path


def _root_hash(metadata: Mapping[str, object], cmdline: str) -> str:
    named = _string(metadata, "rootfs_hash")
    match = _ROOT_HASH.search(cmdline)
    return named or (match[1] if match else "")


def _version(metadata: Mapping[str, object], name: str) -> str:
    version = _string(metadata, "version")
    if not version:
        match = _VERSION_IN_NAME.search(name)
        version = match[1] if match else ""
    if _version_key(version) < OLDEST:
        raise Invalid(f"version {version} is older than 0.5.0")
    return version


def _version_key(version: str) -> tuple[int, ...]:
    match = _VERSION.fullmatch(version)
    if not match:
        raise Invalid(f"version {version!r} is not of the form 0.5.4")
    return tuple(int(part) for part in match.groups())


def _string(metadata: Mapping[str, object], key: str) -> str | None:
    value = metadata.get(key)
    if value is not None and not isinstance(value, str):
        raise Invalid(f"{key} in {manifest.METADATA} is not text")
    return value


def _flag(metadata: Mapping[str, object], key: str) -> bool:
    value = metadata.get(key)
    if value is not None and not isinstance(value, bool):
        raise Invalid(f"{key} in {manifest.METADATA} is not true or false")
    return bool(value)
