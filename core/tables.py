"""The tables of a TOML file as dataclasses, whose fields are the keys that are known."""

from __future__ import annotations

import difflib
import logging
import re
import types
import typing
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any

from core.errors import Invalid

logger = logging.getLogger(__name__)


def build(cls: Any, table: object, prefix: str) -> Any:
    """A dataclass out of a TOML table whose keys are named `prefix.key`; Invalid names the key of a value of another type.

    Keys that are not known warn and are ignored.
    """
    if not isinstance(table, dict):
        raise Invalid.field(prefix or "configuration", "must be a table")
    hints = typing.get_type_hints(cls)
    known = {each.name.rstrip("_"): each.name for each in fields(cls) if each.name != "admin_token"}
    values = {}
    for key, value in table.items():
        name = f"{prefix}.{key}" if prefix else key
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else ""
            logger.warning("unknown configuration key %s is ignored%s", name, hint)
            continue
        values[known[key]] = _convert(hints[known[key]], value, name)
    return cls(**values)


def _convert(kind: Any, value: object, name: str) -> object:
    if is_dataclass(kind):
        return build(kind, value, name)
    if isinstance(kind, types.GenericAlias):  # tuple[X, ...]
        if not isinstance(value, list):
            raise Invalid.field(name, "must be a list")
        return tuple(_convert(kind.__args__[0], each, name) for each in value)
    if isinstance(kind, types.UnionType):  # X | None: a key that may be left out
        return _convert(kind.__args__[0], value, name)
    if kind is int and isinstance(value, str) and (size := re.fullmatch(r"(\d+)([KMG])", value)):
        return int(size[1]) * 1024 ** (" KMG".index(size[2]))
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if kind is int and isinstance(value, bool) or not isinstance(value, kind):
        raise Invalid.field(name, f"must be of type {kind.__name__}")
    if kind is int and typing.cast(int, value) < 0:
        raise Invalid.field(name, "must not be negative")
    return value
