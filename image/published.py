"""The published registry of SecretVM builds: two data files out of a wheel, which is pinned and never installed.

Its package bears a name of ours and reaches out by itself; the files are data, read from the archive.
"""

from __future__ import annotations

import zipfile
from pathlib import Path

from attest import artifacts
from core.errors import Upstream
from core.files import write_atomic
from image.packages import WHEEL, Package, Progress, fetch

PACKAGE = Package(
    WHEEL,
    "secretvm-verify",
    "0.12.0",
    57259,
    "9d0016076fbd22cdbdcb7b1e40425a1dd5d6cc82bb23bfb53da6dd85210bffd6",
    "secretvm_verify-0.12.0-py3-none-any.whl",
)
MEMBERS = ("secretvm/verify/data/tdx.csv", "secretvm/verify/data/sev.json")


def install(folder: Path, cache: Path, progress: Progress, package: Package = PACKAGE) -> None:
    """Puts the two files into `folder`, the wheel being fetched into `cache` unless it is there.

    Raises what image.packages.fetch raises, Upstream for a wheel without them, and Malformed for what is no registry.
    """
    wheel = fetch([package], cache, progress)[package]
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for member in MEMBERS:
            content = _read(archive, member)
            artifacts.parse(Path(member).name, content)
            write_atomic(folder / Path(member).name, content, 0o644)


def _read(archive: zipfile.ZipFile, member: str) -> bytes:
    try:
        with archive.open(member) as file:
            return file.read(artifacts.MAX_FILE)
    except (KeyError, zipfile.BadZipFile):
        raise Upstream(f"{PACKAGE.filename} holds no {member}") from None
