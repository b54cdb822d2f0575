"""The guest images that a KMS has itself, by which it knows what an os image hash stands for.

Source: kms.md section 8 (`[core.image]`).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from attest import lite, snp_launch
from attest.os_image import KnownImage
from core.errors import Invalid
from image import registry
from kms.settings import NONE, ImageSettings

_HASH = re.compile(r"[0-9a-f]{64}")
ALL = "all"


def finder(settings: ImageSettings) -> Callable[[bytes], KnownImage | None]:
    """Answers an os image hash (32 bytes) with the image that has it, None when it is not there.

    The folder is read at each question: images come and go while a KMS runs.
    """

    def find(os_image_hash: bytes) -> KnownImage | None:
        for image in registry.list_images(settings.local_dir):
            if image.digest == os_image_hash.hex():
                return KnownImage(
                    image.version,
                    image.is_dev,
                    _measurement(image.directory / lite.FILE),
                    _measurement(image.directory / snp_launch.FILE),
                )
        return None

    return find if settings.local_dir != NONE else lambda os_image_hash: None


def _measurement(path: Path) -> bytes | None:
    return path.read_bytes() if path.is_file() else None


def clear(cache: Path, image_hash: str, config_hash: str) -> None:
    """Removes images and computed measurements from the cache: one by its hash, `all`, or none (empty).

    Invalid when a name is none of these: it becomes a path.
    """
    names = {"images": image_hash, "configs": config_hash}
    for name in names.values():
        if name not in ("", ALL) and not _HASH.fullmatch(name):
            raise Invalid.field("image_hash", "must be 64 lower-case hex digits, all, or empty")
    for folder, name in names.items():
        if name == ALL:
            shutil.rmtree(cache / folder, ignore_errors=True)
        elif name:
            shutil.rmtree(cache / folder / name, ignore_errors=True)
