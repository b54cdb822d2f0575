"""The guest images that a KMS has itself or fetches, by which it knows what an os image hash stands for.

Source: kms.md section 8 (`[core.image]`).
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Callable
from pathlib import Path

from attest.os_image import KnownImage
from core.errors import Invalid
from image import known
from kms.download import Downloads
from kms.settings import NONE, ImageSettings

_HASH = re.compile(r"[0-9a-f]{64}")
ALL = "all"


def finder(settings: ImageSettings) -> Callable[[bytes], KnownImage | None]:
    """Answers an os image hash (32 bytes) with the image that has it, None when it is nowhere.

    It is looked for in the configured folder, then among what was fetched, then at the configured address.
    """
    fetched = Downloads(settings)
    cached = known.finder(fetched.folder)
    local = known.finder(settings.local_dir) if settings.local_dir != NONE else cached

    def find(os_image_hash: bytes) -> KnownImage | None:
        found = local(os_image_hash) or cached(os_image_hash)
        if found is None and fetched.fetch(os_image_hash.hex()):
            return cached(os_image_hash)
        return found

    return find


def clear(cache: Path, image_hash: str, config_hash: str) -> None:
    """Removes images and computed measurements from the cache: one by its hash, `all`, or none (empty).

    Invalid when a name is none of these: it becomes a path.
    """
    for field, name in (("image_hash", image_hash), ("config_hash", config_hash)):
        if name not in ("", ALL) and not _HASH.fullmatch(name):
            raise Invalid.field(field, "must be 64 lower-case hex digits, all, or empty")
    for folder, name in (("images", image_hash), ("configs", config_hash)):
        if name == ALL:
            shutil.rmtree(cache / folder, ignore_errors=True)
        elif name:
            shutil.rmtree(cache / folder / name, ignore_errors=True)
