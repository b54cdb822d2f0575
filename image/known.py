"""The images of a folder as verifiers know them: by the hash that evidence names."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable
from pathlib import Path

from attest import lite, os_image, snp_launch
from attest.artifacts import Registers, TdxBuild
from attest.errors import VerificationError
from attest.os_image import KnownImage
from core.errors import CasemateError
from core.files import read_capped
from image import manifest, registry
from image.registry import Image


def finder(folder: Path) -> Callable[[bytes], KnownImage | None]:
    """Answers an os image hash (32 bytes) with the image that has it, None when none has.

    The folder is read at each question: images come and go while a service runs.
    """

    def find(os_image_hash: bytes) -> KnownImage | None:
        for image in registry.list_images(folder):
            if image.digest == os_image_hash.hex():
                return KnownImage(
                    image.version,
                    image.is_dev,
                    _measurement(image, lite.FILE) or _computed(image),
                    _measurement(image, snp_launch.FILE),
                )
        return None

    return find


# Whole GiB of memory for which the registers of a VM are known.
MEMORY_GB = range(1, 65)


def measured(folder: Path, registers: Registers, acpi: tuple[bytes, ...]) -> list[TdxBuild]:
    """The images of a folder that measure these registers in a VM whose QEMU has these digests of ACPI data.

    Their size is the VM's memory, as `2gb`; their root file system is told by the hash of the image, which is
    what such a guest measures as os-image-hash.
    """
    found = []
    for image in registry.list_images(folder):
        raw = _measurement(image, lite.FILE) or _computed(image)
        memory_gb = _memory_gb(raw, acpi).get(registers) if raw else None
        if memory_gb:
            environment, digest = "dev" if image.is_dev else "prod", bytes.fromhex(image.digest)
            size = f"{memory_gb}gb"
            found.append(TdxBuild(size, environment, image.version, registers, digest))
    return found


# Computing them takes 3 ms; strangers choose what is asked, so few are kept.
@functools.lru_cache(maxsize=8)
def _memory_gb(raw: bytes, acpi: tuple[bytes, ...]) -> dict[Registers, int]:
    """Every set of registers of an image's measurement, and the memory it belongs to."""
    found: dict[Registers, int] = {}
    try:
        measurement = lite.decode(raw)
        for memory_gb in MEMORY_GB:
            for single_pass in (True, False):
                size = memory_gb * 1024**3
                made = lite.registers(measurement, size, acpi, single_pass=single_pass)
                found[(made.mrtd, *made.rtmrs)] = memory_gb
    except VerificationError:
        return {}
    return found


def _measurement(image: Image, name: str) -> bytes | None:
    """An image's measurement file, None when it has none or one that its digest does not bind."""
    try:
        content = read_capped(image.directory / name, lite.MAX_SIZE)
        sums = read_capped(image.directory / manifest.SUMS, manifest.LIMIT)
        listed = os_image.listed(sums, name)
    except (CasemateError, OSError):
        return None
    return content if hashlib.sha256(content).hexdigest() == listed else None


def _computed(image: Image) -> bytes | None:
    """The TDX measurement of an older image, from its files; None when they are changed or of another kind."""
    if image.bios is None or image.ovmf_variant not in (None, lite.OVMF):
        return None
    return None if registry.changed_files(image) else _measured(image)


# An image is a frozen value with its digest in it; its files take 0.1 s to hash.
@functools.lru_cache(maxsize=8)
def _measured(image: Image) -> bytes | None:
    assert image.bios is not None  # _computed() has seen to it
    kernel, initrd, bios = (path.read_bytes() for path in (image.kernel, image.initrd, image.bios))
    try:
        return lite.encode(lite.measure(kernel, initrd, image.cmdline, bios))
    except VerificationError:
        return None
