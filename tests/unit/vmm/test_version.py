from __future__ import annotations

import importlib.metadata
import re
import subprocess

import pytest

from core.proc import CommandFailed
from vmm import version


def test_the_version_is_the_packages() -> None:
    assert importlib.metadata.version("casemate") == version.VERSION


def test_the_revision_is_that_of_the_checkout() -> None:
    version.revision.cache_clear()

    assert re.fullmatch(r"git:([0-9a-f]{40}|unknown)", version.revision())


def test_without_a_checkout_the_revision_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> subprocess.CompletedProcess[bytes]:
        raise CommandFailed(["git"], 128, "not a git repository")

    monkeypatch.setattr(version, "run", fail)
    version.revision.cache_clear()

    assert version.revision() == "git:unknown"
    version.revision.cache_clear()
