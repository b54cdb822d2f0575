"""docs/configuration.md lists every key that works, with its true default, and no other."""

from __future__ import annotations

import re
import tomllib
import typing
from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest

from core import config as configuration
from core.config import Config

PAGE = Path(__file__).parents[2] / "docs/configuration.md"
# From the environment alone.
NOT_IN_FILES = {"admin_token"}


def documented() -> dict[str, str]:
    """Full key -> the default as the page has it."""
    found: dict[str, str] = {}
    section = ""
    for line in PAGE.read_text().splitlines():
        if heading := re.fullmatch(r"## (?:Top level|`\[([a-z_.]+)\]`)", line):
            section = f"{heading[1]}." if heading[1] else ""
        elif row := re.fullmatch(r"\| `([a-z_0-9]+)` \|([^|]*)\|.*\|", line):
            assert f"{section}{row[1]}" not in found, f"{section}{row[1]} stands there twice"
            found[f"{section}{row[1]}"] = row[2].strip()
    return found


def existing(cls: Any = Config, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Full key -> the default as the code has it."""
    hints = typing.get_type_hints(cls)
    defaults = cls()
    for each in fields(cls):
        if is_dataclass(hints[each.name]):
            yield from existing(hints[each.name], f"{prefix}{each.name}.")
        elif each.name not in NOT_IN_FILES:
            yield f"{prefix}{each.name}", getattr(defaults, each.name)


def test_each_key_is_documented_and_each_documented_key_exists() -> None:
    assert set(documented()) == {key for key, _ in existing()}


@pytest.mark.parametrize(
    ("key", "default"),
    [(key, default) for key, default in existing() if isinstance(default, (bool, int))],
)
def test_a_documented_number_is_the_codes(key: str, default: bool | int, tmp_path: Path) -> None:
    text = documented()[key].strip("`")
    value = str(default).lower() if isinstance(default, bool) else str(default)
    if text == value:
        return
    # A size with its unit is read as a file would be.
    *section, name = key.split(".")
    file = tmp_path / "casemate.toml"
    file.write_text(f'[{".".join(section)}]\n{name} = "{text}"\n')
    tomllib.loads(file.read_text())
    loaded: Any = configuration.load(file)
    for part in key.split("."):
        loaded = getattr(loaded, part)
    assert loaded == default


@pytest.mark.parametrize(
    ("key", "default"),
    [(key, default) for key, default in existing() if isinstance(default, str) and default],
)
def test_a_documented_text_is_the_codes(key: str, default: str) -> None:
    assert documented()[key] == f"`{default}`"
