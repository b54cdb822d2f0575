"""A simulated agent's folder, an agent on it, and the published vectors."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from guest import simulator
from guest.service import Agent

VECTORS = Path(__file__).parents[4] / "shared" / "data" / "attestation"


@pytest.fixture(scope="session")
def vectors() -> Path:
    """The folder of published vectors; a test that needs it is skipped where there is none."""
    if not VECTORS.is_dir():
        pytest.skip(f"the published vectors are not here ({VECTORS})")
    return VECTORS


@pytest.fixture(scope="session")
def known_answers(vectors: Path) -> dict[str, Any]:
    """known-answers.json."""
    answers: dict[str, Any] = json.loads((vectors / "known-answers.json").read_text())
    return answers


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a simulated agent keeps its files."""
    return tmp_path / "agent"


@pytest.fixture
def ended() -> list[str]:
    """Gets an entry when the agent's VM is to end."""
    return []


@pytest.fixture
def agent(folder: Path, ended: list[str]) -> Iterator[Agent]:
    """An agent that has booted as a simulator, without listeners."""
    with simulator.prepared(folder, None, f"unix://{folder}/engine.sock") as ready:
        yield Agent(ready.settings, lambda: ended.append("power off"))
