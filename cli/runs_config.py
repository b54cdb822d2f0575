"""The projects that the commands of runs know: `~/.casemate/config.yml`, in dstack's form, and dstack's own beside it.

Source of the form: runs.md section 4.  What `~/.dstack/config.yml` names is used too, unless ours has the name; only ours
is written.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from core import files
from core.errors import Invalid, NotFound

OURS, THEIRS = Path(".casemate/config.yml"), Path(".dstack/config.yml")


@dataclass(frozen=True)
class Entry:
    """One project of a server, and the token of a user there."""

    name: str
    url: str
    token: str = field(repr=False)
    default: bool = False

    def __post_init__(self) -> None:
        # They go into a header and a path as they are.
        if not re.fullmatch(r"[!-~]+", self.token):
            raise Invalid.field("token", "must have no spaces and only letters, digits and signs")
        if not self.name:
            raise Invalid.field("name", "must not be empty")


def folder() -> Path:
    """Where our file, keys and the configuration of ssh are."""
    return Path.home() / OURS.parent


def entries() -> list[Entry]:
    """All known projects; those of our own file first, and one of them the default."""
    ours, theirs = _read(Path.home() / OURS), _read(Path.home() / THEIRS)
    if any(each.default for each in ours):
        theirs = [replace(each, default=False) for each in theirs]
    names = {each.name for each in ours}
    return ours + [each for each in theirs if each.name not in names]


def chosen(name: str) -> Entry:
    """The project of a name, of DSTACK_PROJECT, or the default one; NotFound says how to add one."""
    known = entries()
    name = name or os.environ.get("DSTACK_PROJECT", "")
    if name:
        found = next((each for each in known if each.name == name), None)
        if found is None:
            raise NotFound(f"project {name} is not configured; see `casemate project add`")
        return found
    found = next((each for each in known if each.default), None)
    if found is None and len(known) == 1:
        found = known[0]
    if found is None:
        raise NotFound(
            "no default project; `casemate project add` adds one, `casemate project set-default` chooses one"
        )
    return found


def add(entry: Entry) -> None:
    """Writes a project into our file, in place of one of that name; the first becomes the default."""
    kept = [each for each in _read(Path.home() / OURS) if each.name != entry.name]
    was_default = any(each.default for each in entries() if each.name == entry.name)
    is_first = not any(each.default for each in entries())
    _write([*kept, replace(entry, default=was_default or is_first)])


def delete(name: str) -> None:
    """Takes a project out of our file; NotFound when it is not there."""
    kept = [each for each in _read(Path.home() / OURS) if each.name != name]
    if len(kept) == len(_read(Path.home() / OURS)):
        raise NotFound(f"project {name} is not in ~/{OURS}")
    _write(kept)


def set_default(name: str) -> None:
    """Makes a known project the one that is meant when none is named."""
    known = entries()
    entry = next((each for each in known if each.name == name), None)
    if entry is None:
        raise NotFound(f"project {name} is not configured; see `casemate project add`")
    ours = [replace(each, default=False) for each in _read(Path.home() / OURS) if each.name != name]
    _write([*ours, replace(entry, default=True)])


def _read(path: Path) -> list[Entry]:
    import yaml

    try:
        found = yaml.safe_load(path.read_text()) or {}
        return [_entry(each) for each in found.get("projects") or []]
    except FileNotFoundError:
        return []
    except RecursionError:
        raise Invalid(f"{path} is not a list of projects") from None
    except (yaml.YAMLError, AttributeError, KeyError, TypeError, ValueError, Invalid) as error:
        why = " ".join(str(error).split())[:200]
        raise Invalid(f"{path} is not a list of projects: {why}") from None


def _entry(given: dict[str, Any]) -> Entry:
    name, url, token = (str(given[key]) for key in ("name", "url", "token"))
    return Entry(name, url.rstrip("/"), token, bool(given.get("default")))


def _write(all_: Sequence[Entry]) -> None:
    import yaml

    folder().mkdir(mode=0o700, exist_ok=True)
    text = yaml.safe_dump({"projects": [asdict(each) for each in all_]}, sort_keys=False)
    files.write_atomic(Path.home() / OURS, text)
