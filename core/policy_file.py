"""The policy file of a KMS: what its JSON document must look like, and changing it as one step.

The KMS decides by it (kms/policy.py), the operator edits it (`casemate kms allow`), and the service adds to it
what its users deploy (`[kms] register_apps`).  Source: kms.md section 5.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from core import files
from core.errors import Invalid

MAX_FILE = 16 * 1024 * 1024
_LISTS = ("osImages", "allowedTcbStatuses", "allowedAdvisoryIds")

Document = dict[str, Any]


def normal(hash_text: str) -> str:
    """A hash or id as it is compared: lower case, without 0x."""
    return hash_text.lower().removeprefix("0x")


def read(path: Path) -> Document:
    """The document; an absent file is an empty one, which allows nothing.  Invalid when it is broken."""
    try:
        given = json.loads(files.read_capped(path, MAX_FILE))
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError):
        raise Invalid(f"{path.name} is not valid JSON") from None
    return _checked(given, path.name)


def _checked(given: object, name: str) -> Document:
    if not isinstance(given, dict):
        raise Invalid(f"{name} must be a JSON object")
    for key in _LISTS:
        texts(given, key)
    kms = entries(given, "kms")
    texts(kms, "mrAggregated")
    texts(kms, "devices")
    for app in entries(given, "apps").values():
        if not isinstance(app, dict):
            raise Invalid.field("apps", "must map app ids to objects")
        texts(app, "composeHashes")
        texts(app, "devices")
    return given


def texts(given: Mapping[str, Any], key: str, absent: list[str] | None = None) -> list[str]:
    """A list of strings of the document, `absent` where it has none; Invalid when it is something else."""
    value = given.get(key, absent or [])
    if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
        raise Invalid.field(key, "must be a list of strings")
    return value


def entries(given: Mapping[str, Any], key: str) -> dict[str, Any]:
    """An object of the document, empty where it has none; Invalid when it is something else."""
    value = given.get(key, {})
    if not isinstance(value, dict):
        raise Invalid.field(key, "must be an object")
    return value


def find_app(document: Document, app_id: str) -> dict[str, Any] | None:
    """The entry of an app, however its id is written; None when it has none."""
    for name, entry in entries(document, "apps").items():
        if normal(name) == normal(app_id):
            found: dict[str, Any] = entry
            return found
    return None


def change(path: Path, edit: Callable[[Document], None]) -> Document:
    """Changes the file as one step, kept out of the way of other changes; returns what it holds then."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with files.locked(path.with_name(f".{path.name}.lock")):
        document = read(path)
        edit(document)
        files.write_atomic(path, json.dumps(_checked(document, path.name), indent=2) + "\n")
    return document


def add(listed: list[str], value: str) -> None:
    """Puts a hash into a list of the document once."""
    if normal(value) not in map(normal, listed):
        listed.append(normal(value))


def drop(listed: list[str], value: str) -> bool:
    """Takes a hash out of a list of the document; whether it was there."""
    kept = [text for text in listed if normal(text) != normal(value)]
    found = len(kept) < len(listed)
    listed[:] = kept
    return found


def allow_app(document: Document, app_id: str, compose_hash: str) -> None:
    """Lists a compose hash of an app; one that is new may run on every device, as nobody has named any."""
    entry = find_app(document, app_id)
    if entry is None:
        entry = {"composeHashes": [], "devices": [], "allowAnyDevice": True}
        document.setdefault("apps", {})[normal(app_id)] = entry
    add(entry.setdefault("composeHashes", []), compose_hash)
