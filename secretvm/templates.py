"""Compose texts to begin with: the files of templates/vm, read once."""

from __future__ import annotations

import functools
import tomllib
from pathlib import Path
from typing import Any

from core.errors import NotFound

FOLDER = Path(__file__).parents[1] / "templates" / "vm"


@functools.cache
def listed() -> tuple[dict[str, Any], ...]:
    """All templates, by id."""
    return tuple(_read(path) for path in sorted(FOLDER.glob("*.toml")))


def named(template_id: str) -> dict[str, Any]:
    """One template, or NotFound."""
    for each in listed():
        if each["id"] == template_id:
            return each
    raise NotFound(f"there is no template {template_id[:64]}")


def _read(path: Path) -> dict[str, Any]:
    given = tomllib.loads(path.read_text())
    return {
        "id": path.stem,
        "name": given["name"],
        "description": given["description"],
        "instructions": given["instructions"],
        "tags": given["tags"],
        "submittedBy": given["submitted_by"],
        "link": given["link"],
        "docker": given["docker"],
        "defaultVmSize": given["default_vm_size"],
        "createdAt": given["created_at"],
        "updatedAt": given["updated_at"],
    }
