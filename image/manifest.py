"""The description files of an image folder: metadata.json, sha256sum.txt and digest.txt.

Format: dstack's image directories, vmm.md section 7.  digest.txt holds the SHA-256 of sha256sum.txt and
is the image's identity; the root file system is bound through its dm-verity hash on the command line.
"""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from core.errors import Invalid
from core.files import read_capped, write_atomic

METADATA = "metadata.json"
SUMS = "sha256sum.txt"
DIGEST = "digest.txt"
DESCRIBING = (METADATA, SUMS, DIGEST)

# Ours are under 2 KiB; a folder that somebody else made is read with a limit.
LIMIT = 1024 * 1024

# coreutils' format: digest, a space, a space or an asterisk (binary mode), the name.
_LINE = re.compile(r"([0-9a-f]{64}) [ *](?:\./)?([A-Za-z0-9._-]+)")

_Identity = tuple[int, int, int, int, int]
_known: dict[Path, tuple[_Identity, str]] = {}
_known_lock = threading.Lock()


def write(directory: Path, metadata: Mapping[str, object], covered: Sequence[str]) -> str:
    """Writes the three files of a finished image and returns its digest (64 hex digits).

    `covered` names the files beside metadata.json that the digest shall bind.
    """
    text = json.dumps(metadata, indent=2, sort_keys=True) + "\n"
    write_atomic(directory / METADATA, text, 0o644)
    names = sorted({*covered, METADATA})
    sums = "".join(f"{file_digest(directory / name)}  {name}\n" for name in names)
    write_atomic(directory / SUMS, sums, 0o644)
    digest = hashlib.sha256(sums.encode()).hexdigest()
    write_atomic(directory / DIGEST, digest + "\n", 0o644)
    return digest


def read_metadata(directory: Path) -> tuple[dict[str, object], str]:
    """The parsed metadata.json of a folder and its exact text; Invalid when it is no JSON object."""
    text = _text(directory, METADATA)
    try:
        metadata = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Invalid(f"{METADATA} is not valid JSON: {error}") from None
    if not isinstance(metadata, dict):
        raise Invalid(f"{METADATA} is not a JSON object")
    return metadata, text


def digest(directory: Path) -> str:
    """The image's identity: SHA-256 of sha256sum.txt, or "" in a folder that has no such file."""
    try:
        return hashlib.sha256(read_capped(directory.resolve() / SUMS, LIMIT)).hexdigest()
    except FileNotFoundError:
        return ""


def changed_files(directory: Path) -> list[str]:
    """Names the listed files that are gone or whose bytes differ from sha256sum.txt.

    digest.txt is named too when it does not belong to sha256sum.txt.  Digests are remembered per
    process for as long as the file's identity and times stay the same, so a second look costs a stat.
    """
    if not (directory / SUMS).exists():
        return []
    changed = []
    for name, expected in _sums(directory).items():
        try:
            actual = file_digest(directory / name)
        except OSError:
            actual = ""
        if actual != expected:
            changed.append(name)
    if (directory / DIGEST).exists() and _text(directory, DIGEST).strip() != digest(directory):
        changed.append(DIGEST)
    return changed


def file_digest(path: Path) -> str:
    """SHA-256 of a file in hex, remembered by inode, size and both times."""
    with path.open("rb") as file:
        status = path.stat()
        # ctime too: it is the one time stamp that nobody can set back.
        identity = (
            status.st_dev,
            status.st_ino,
            status.st_size,
            status.st_mtime_ns,
            status.st_ctime_ns,
        )
        with _known_lock:
            known = _known.get(path)
        if known and known[0] == identity:
            return known[1]
        computed = hashlib.file_digest(file, "sha256").hexdigest()
    with _known_lock:
        _known[path] = (identity, computed)
    return computed


def _sums(directory: Path) -> dict[str, str]:
    sums = {}
    for line in _text(directory, SUMS).splitlines():
        match = _LINE.fullmatch(line)
        if not match:
            raise Invalid(f"{SUMS} has a line that is not `DIGEST  NAME`")
        sums[match[2]] = match[1]
    return sums


def _text(directory: Path, name: str) -> str:
    try:
        return read_capped(directory.resolve() / name, LIMIT).decode()
    except FileNotFoundError:
        raise Invalid(f"{name} is missing") from None
    except UnicodeDecodeError:
        raise Invalid(f"{name} is not text") from None
