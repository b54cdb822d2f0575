"""A file that describes a run or a fleet, as `casemate apply` and `delete` read it."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from core.errors import Invalid, NotFound

KINDS = ("task", "service", "dev-environment", "fleet")
# What would have to be sent beside the configuration.
LOCAL = ("files", "repos")
STDIN = Path("-")
# As dstack writes a variable of the run among the credentials of a registry.
_VARIABLE = re.compile(r"\$\{\{\s*env\.([A-Za-z_]\w*)\s*\}\}")

FILE = click.option(
    "-f",
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False, allow_dash=True),
    default=Path(".dstack.yml"),
    show_default=True,
    help="The configuration, a .yml or .yaml file; - for standard input.",
)


def read(path: Path) -> dict[str, Any]:
    """What a file describes; Invalid for what is no configuration."""
    import yaml

    if path != STDIN and path.suffix not in (".yml", ".yaml"):
        raise Invalid(f"{path}: the name of a configuration ends in .yml or .yaml")
    try:
        found = yaml.safe_load(sys.stdin.read() if path == STDIN else path.read_text())
        json.dumps(found, default=str)  # as it will be sent
    except FileNotFoundError:
        raise NotFound(f"there is no file {path}; name one with -f") from None
    except (yaml.YAMLError, TypeError, ValueError, RecursionError) as error:
        # ValueError: bytes that are no text, days that are none, what contains itself.
        raise Invalid(f"{path} is not YAML: {' '.join(str(error).split())[:300]}") from None
    if not isinstance(found, dict) or found.get("type") not in KINDS:
        raise Invalid.field("type", f"{path} must have a type: {', '.join(KINDS)}")
    return found


def check_sendable(configuration: Mapping[str, Any]) -> None:
    """Refuses what only dstack's own program sends."""
    for name in LOCAL:
        if configuration.get(name):
            raise Invalid.field(
                name, "files of this machine are not sent by casemate; leave it out"
            )


def environment(given: Any, more: Sequence[str]) -> dict[str, str]:
    """The variables of a configuration, a map or a list, and of the command line.

    A name without a value is taken from our own environment; Invalid names one that is not there.
    """
    if isinstance(given, Mapping):
        given = [str(name) if value is None else f"{name}={value}" for name, value in given.items()]
    if not isinstance(given or [], list):
        raise Invalid.field("env", "must be a map or a list of NAME=VALUE")
    pairs = [pair.partition("=") for pair in (*map(str, given or []), *more)]
    wanted = {
        name: value if has_value else os.environ.get(name) for name, has_value, value in pairs
    }
    missing = [name for name, value in wanted.items() if value is None]
    if missing:
        raise Invalid.field("env", f"{missing[0]} has no value, here and in the environment")
    return {name: value for name, value in wanted.items() if value is not None}


def credentials(given: Any, variables: Mapping[str, str]) -> Any:
    """The `registry_auth` of a configuration with `${{ env.NAME }}` replaced; Invalid names one without a value."""
    if not isinstance(given, Mapping):
        return given

    def value(match: re.Match[str]) -> str:
        if match[1] not in variables:
            raise Invalid.field("registry_auth", f"{match[1]} is none of the variables in env")
        return variables[match[1]]

    return {
        name: _VARIABLE.sub(value, text) if isinstance(text, str) else text
        for name, text in given.items()
    }
