"""Whether passt can work here: it shuts itself off in a user namespace, which containers and chroots may forbid."""

from __future__ import annotations

import functools
import shutil
import subprocess

import pytest


@functools.cache
def why_not() -> str:
    """What keeps passt from working, "" when nothing does."""
    if shutil.which("passt") is None:
        return "passt is not installed"
    made = subprocess.run(["unshare", "--user", "true"], capture_output=True, check=False)
    return "" if made.returncode == 0 else "passt needs user namespaces, which are forbidden here"


needs_passt = pytest.mark.skipif(bool(why_not()), reason=why_not())
