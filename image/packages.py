"""The lock file of an image and the cache of packages that it names.

packages.lock has one line per package: kind, name, version, size in bytes, SHA-256 and where it comes from.
A `deb` kind's source is the full URL of its file; a wheel's is its file name on PyPI.
"""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from core.errors import Invalid, NotFound, Upstream
from core.files import locked
from core.proc import run
from image.recipe import PYTHON, WHEEL_PLATFORMS

# What a package is for: the root file system, the kernel, the initramfs, firmware, the builder's own tools.
DEB_KINDS = frozenset({"root", "kernel", "boot", "firmware", "tool"})
WHEEL = "wheel"

LOCK_FILE = Path(__file__).parent / "packages.lock"

# Told of each step: its name, how much of it is done (0 to 1, None when not known), and a sentence.
Progress = Callable[[str, float | None, str], None]

# One run of the downloader fetches about this much, so that progress moves on slow lines too.
_BATCH_BYTES = 8 * 1024 * 1024

_HEADER = "# Written by `casemate image lock`: kind name version size sha256 source\n"


@dataclass(frozen=True, order=True)
class Package:
    """One line of the lock file."""

    kind: str
    name: str
    version: str
    size: int
    sha256: str
    source: str

    @property
    def filename(self) -> str:
        """The name of its file in the cache."""
        return unquote(self.source.rsplit("/", 1)[-1])


def parse_lock(text: str) -> list[Package]:
    """Reads a lock file; Invalid names the line that is not one."""
    packages = []
    for number, line in enumerate(text.splitlines(), 1):
        if not line or line.startswith("#"):
            continue
        try:
            kind, name, version, size, sha256, source = line.split()
            package = Package(kind, name, version, int(size), sha256, source)
            if kind not in DEB_KINDS | {WHEEL} or len(bytes.fromhex(sha256)) != 32:
                raise ValueError
            if package.filename in {"", ".", ".."} or "/" in package.filename:
                raise ValueError
        except ValueError:
            raise Invalid(
                f"line {number} of the lock file is not a package: {line[:200]}"
            ) from None
        packages.append(package)
    return packages


def format_lock(packages: Iterable[Package]) -> str:
    """The lock file that names these packages, in an order of its own."""
    lines = (
        f"{p.kind} {p.name} {p.version} {p.size} {p.sha256} {p.source}\n" for p in sorted(packages)
    )
    return _HEADER + "".join(lines)


def fetch(packages: Sequence[Package], folder: Path, progress: Progress) -> dict[Package, Path]:
    """Makes sure that every package lies in `folder` with the digest of the lock; says where.

    Raises NotFound when a version has left the mirror, Upstream when the download fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder / ".lock"):
        missing = [package for package in packages if not _is_there(package, folder)]
        total = sum(package.size for package in missing)
        done = 0
        for batch in _batches(missing):
            progress("download", done / total, f"{done / 1e6:.0f} of {total / 1e6:.0f} MB")
            _download(batch, folder)
            done += sum(package.size for package in batch)
        progress(
            "download",
            1.0,
            f"{total / 1e6:.0f} MB fetched, {len(packages) - len(missing)} packages cached",
        )
    return {package: folder / package.filename for package in packages}


def _is_there(package: Package, folder: Path) -> bool:
    path = folder / package.filename
    if not path.is_file() or path.stat().st_size != package.size:
        return False
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == package.sha256


def _batches(packages: Iterable[Package]) -> Iterator[list[Package]]:
    """Splits by kind of downloader and by size."""
    batch: list[Package] = []
    for package in sorted(packages, key=lambda p: (p.kind == WHEEL, p)):
        full = sum(p.size for p in batch) >= _BATCH_BYTES
        if batch and (full or (batch[0].kind == WHEEL) != (package.kind == WHEEL)):
            yield batch
            batch = []
        batch.append(package)
    if batch:
        yield batch


def _download(batch: Sequence[Package], folder: Path) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as name:
        partial = Path(name)
        output = _pip(batch, partial) if batch[0].kind == WHEEL else _apt(batch, partial)
        for package in batch:
            if not _is_there(package, partial):
                raise _failure(package, output)
            (partial / package.filename).rename(folder / package.filename)


def _apt(batch: Sequence[Package], folder: Path) -> str:
    # apt's own downloader: it knows the host's proxies and checks the digest.  As root it would drop to a
    # user who may not write here.
    argv = ["/usr/lib/apt/apt-helper", "-o", "APT::Sandbox::User=root", "download-file"]
    for package in batch:
        argv += [package.source, str(folder / package.filename), f"SHA256:{package.sha256}"]
    done = run(argv, check=False, timeout_s=1800)
    return (done.stdout + done.stderr).decode(errors="replace")


def _pip(batch: Sequence[Package], folder: Path) -> str:
    lines = (f"{p.name}=={p.version} --hash=sha256:{p.sha256}\n" for p in batch)
    wanted = folder / "wheels.txt"
    wanted.write_text("".join(lines))
    done = run(
        [*pip_download(folder), "--require-hashes", "-r", wanted], check=False, timeout_s=1800
    )
    return (done.stdout + done.stderr).decode(errors="replace")


def pip_download(folder: Path) -> list[str]:
    """The start of a command line that downloads wheels for the guest's Python into `folder`."""
    argv = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
    argv += ["--no-deps", "--only-binary=:all:", "--dest", str(folder)]
    argv += ["--python-version", PYTHON, "--implementation", "cp"]
    argv += ["--abi", "cp" + PYTHON.replace(".", ""), "--abi", "abi3", "--abi", "none"]
    for platform in WHEEL_PLATFORMS:
        argv += ["--platform", platform]
    return argv


def _failure(package: Package, output: str) -> NotFound | Upstream:
    what = f"{package.name} {package.version}"
    if "404" in output or "No matching distribution" in output:
        return NotFound(
            f"{what} is no longer on its mirror; run `casemate image lock` to take the current versions"
        )
    return Upstream(f"{what} could not be downloaded: {output.strip()[-1000:]}")
