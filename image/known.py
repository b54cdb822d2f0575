"""The images of a folder as verifiers know them: by the hash that evidence names."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

from attest import lite, os_image, snp_launch
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
                tdx, snp = _measurement(image, lite.FILE), _measurement(image, snp_launch.FILE)
                return KnownImage(image.version, image.is_dev, tdx, snp)
        return None

    return find


def _measurement(image: Image, name: str) -> bytes | None:
    """An image's measurement file, None when it has none or one that its digest does not bind."""
    try:
        content = read_capped(image.directory / name, lite.MAX_SIZE)
        sums = read_capped(image.directory / manifest.SUMS, manifest.LIMIT)
        listed = os_image.listed(sums, name)
    except (CasemateError, OSError):
        return None
    return content if hashlib.sha256(content).hexdigest() == listed else None
