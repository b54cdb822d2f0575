"""Known answers that others published, read from beside the checkout; a test that needs one is skipped without."""

from __future__ import annotations

from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[3] / "shared" / "data" / "secretvm"


def secretvm(name: str) -> bytes:
    """A file of SecretVM's known answers; fails when the folder lacks it."""
    if not FOLDER.is_dir():
        pytest.skip("the folder of published vectors is not beside this checkout")
    return (FOLDER / name).read_bytes()
