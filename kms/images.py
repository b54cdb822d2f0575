"""The guest images that a KMS has itself, by which it knows what an os image hash stands for.

Source: kms.md section 8 (`[core.image]`).
"""

from __future__ import annotations

from collections.abc import Callable

from attest.os_image import KnownImage
from kms.settings import ImageSettings


def finder(settings: ImageSettings) -> Callable[[bytes], KnownImage | None]:
    """Answers an os image hash (32 bytes) with the image that has it, None when it is not there."""
    return lambda os_image_hash: None
