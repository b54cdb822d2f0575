"""The sample app: what `make run` deploys, and an example of an app that proves what it is."""

from __future__ import annotations

from pathlib import Path

FOLDER = Path(__file__).parent


def compose_text() -> str:
    """The docker-compose file of the sample app."""
    return (FOLDER / "docker-compose.yaml").read_text()
