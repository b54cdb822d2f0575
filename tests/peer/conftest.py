"""Other people's clients, pinned and installed once into the cache, apart from our own packages."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from core import config as configuration
from core import files

HERE = Path(__file__).parent


def installed(kind: str, lock: Path, install: Callable[[Path], None]) -> Path:
    """A folder that `install` filled from a lock file: in the cache, under the lock's digest."""
    key = hashlib.sha256(lock.read_bytes()).hexdigest()[:16]
    cache = configuration.cache_dir() / "peers"
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / f"{kind}-{key}"
    with files.locked(cache / f".{kind}.lock", timeout_s=600):
        if not folder.exists():
            fresh = cache / f".{kind}.new"
            shutil.rmtree(fresh, ignore_errors=True)
            fresh.mkdir()
            install(fresh)
            fresh.rename(folder)
    return folder


@pytest.fixture(scope="session")
def peer_python() -> Path:
    """A Python interpreter that has the packages of python/requirements.txt and nothing of ours."""
    lock = HERE / "python/requirements.txt"

    def install(folder: Path) -> None:
        # By `--target`: a virtual environment could not be renamed.
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--require-hashes", "--target", folder, "-r", lock], check=True)

    return installed("python", lock, install)


@pytest.fixture(scope="session")
def peer_dstackai() -> Path:
    """A folder with the packages of dstackai/requirements.txt: dstack's own command line."""
    lock = HERE / "dstackai/requirements.txt"

    def install(folder: Path) -> None:
        pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "--require-hashes", "--target", folder, "-r", lock], check=True)

    return installed("dstackai", lock, install)


@pytest.fixture(scope="session")
def peer_node() -> Path:
    """A folder whose node_modules has the packages of node/package-lock.json."""
    lock = HERE / "node/package-lock.json"

    def install(folder: Path) -> None:
        for name in ("package.json", "package-lock.json"):
            shutil.copy(HERE / "node" / name, folder)
        subprocess.run(
            ["npm", "ci", "--ignore-scripts", "--no-audit", "--no-fund", "--loglevel=error"],
            cwd=folder,
            check=True,
        )

    return installed("node", lock, install)
