"""The guest images that a KMS has itself, by which it knows what an os image hash stands for.

Source: kms.md section 8 (`[core.image]`).
"""

from __future__ import annotations

import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path

from attest.os_image import KnownImage
from core.errors import Invalid
from image import known
from kms.settings import NONE, ImageSettings

logger = logging.getLogger(__name__)

_HASH = re.compile(r"[0-9a-f]{64}")
ALL = "all"


def finder(settings: ImageSettings) -> Callable[[bytes], KnownImage | None]:
    """Answers an os image hash (32 bytes) with the image that has it, None when it is not there."""
    if settings.download_url:
        logger.warning("core.image.download_url is not used: images are not downloaded")
    if settings.local_dir == NONE:
        return lambda os_image_hash: None
    return known.finder(settings.local_dir)


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
