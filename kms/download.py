"""Images that a KMS fetches by their hash (`[core.image] download_url`) and keeps in its cache.

The archive is a tar file, maybe compressed, with the files of one image at its top or in one folder.  Whoever
serves it is not trusted: an image is its hash, which is that of the list of its files' hashes.
Source: kms.md section 8.
"""

from __future__ import annotations

import logging
import re
import shutil
import tarfile
import tempfile
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from attest import os_image
from core import files, http
from core.errors import CasemateError, Invalid
from image import manifest
from kms.settings import IMAGE_HASH, ImageSettings, download_timeout_s

logger = logging.getLogger(__name__)

# Ours have 0.2 GiB, dstack's up to 1.
MAX_ARCHIVE = 2 * 1024**3
MAX_IMAGE = 4 * 1024**3
MAX_FILES = 64
_NAME = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]{0,127}")
_PIECE = 1024 * 1024


class Downloads:
    """The images fetched so far, each in a folder named by its hash, and fetching one more."""

    def __init__(self, settings: ImageSettings) -> None:
        self.folder = settings.cache_dir / "images"
        self._url = settings.download_url
        self._within_s = download_timeout_s(settings)

    def fetch(self, image_hash: str) -> bool:
        """Whether the image of a hash (64 hex digits) is there now; the log says why it is not."""
        if not self._url:
            return False
        self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            # One at a time: many guests of a new image ask at once.
            with files.locked(self.folder / ".lock", timeout_s=self._within_s):
                if not (self.folder / image_hash).exists():
                    self._add(image_hash)
        except (CasemateError, OSError) as error:
            logger.warning("the os image %s was not fetched: %s", image_hash, error)
            return False
        return True

    def _add(self, image_hash: str) -> None:
        with tempfile.TemporaryDirectory(prefix=".new-", dir=self.folder) as room:
            made = Path(room) / image_hash
            made.mkdir(mode=0o700)
            with tempfile.TemporaryFile(dir=room) as archive:
                url = self._url.replace(IMAGE_HASH, image_hash)
                http.Peer(url).save(archive, within_s=self._within_s, limit=MAX_ARCHIVE)
                archive.seek(0)
                unpack(archive, made)
            check(made, image_hash)
            made.rename(self.folder / image_hash)
        logger.info("the os image %s was fetched", image_hash)


def unpack(archive: BinaryIO, folder: Path) -> None:
    """Puts the regular files of a tar archive side by side into a folder; Invalid when it is none of an image."""
    room = MAX_IMAGE
    try:
        with tarfile.open(fileobj=archive, mode="r|*") as opened:
            for number, member in enumerate(opened):
                if number >= MAX_FILES:
                    raise Invalid(f"the archive has more than {MAX_FILES} entries")
                content = opened.extractfile(member) if member.isfile() else None
                if content is None:
                    continue
                room -= member.size
                if room < 0:
                    raise Invalid(f"the image has more than {MAX_IMAGE} bytes")
                with (folder / _name(member)).open("xb") as file:
                    shutil.copyfileobj(content, file, _PIECE)
    except (tarfile.TarError, EOFError, FileExistsError, ValueError) as error:
        raise Invalid(f"the archive cannot be read: {error}") from None


def _name(member: tarfile.TarInfo) -> str:
    name = PurePosixPath(member.name).name
    if not _NAME.fullmatch(name):
        raise Invalid("the archive has a file whose name no image file has")
    return name


def check(folder: Path, image_hash: str) -> None:
    """Raises Invalid unless a folder holds the image of this hash, whole and with its description."""
    if manifest.digest(folder) != image_hash:
        raise Invalid(f"the archive holds another image (SHA-256 of {manifest.SUMS})")
    if changed := manifest.changed_files(folder):
        raise Invalid(f"{', '.join(changed)} of the archive are not what {manifest.SUMS} lists")
    sums = (folder / manifest.SUMS).read_bytes()
    if not os_image.listed(sums, manifest.METADATA):
        raise Invalid(f"{manifest.SUMS} does not list {manifest.METADATA}")
