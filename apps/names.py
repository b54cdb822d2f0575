"""The many names by which clients know an app or a CVM (apps.md section 2; pure)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

_DIGITS_40 = re.compile(r"[0-9a-f]{40}")
_INTEGER = re.compile(r"[1-9][0-9]{0,17}")


def hashed(kind: str, key: str) -> str:
    """A short public name that is always the same for the same thing, such as `cvm_0f8fad5bd9cb`."""
    return f"{kind}_{hashlib.sha256(key.encode()).hexdigest()[:12]}"


def bare_app_id(text: str) -> str | None:
    """The 40 digits of an app id in any of the accepted spellings, or None."""
    return _digits(text, "app_")


def bare_instance_id(text: str) -> str | None:
    """The 40 digits of an instance id, or None."""
    return _digits(text, "instance_")


def _digits(text: str, prefix: str) -> str | None:
    bare = text.lower().removeprefix(prefix).removeprefix("0x")
    return bare if _DIGITS_40.fullmatch(bare) else None


def named(text: str, vms: Sequence[Any]) -> list[Any]:
    """Those of some VM rows (`id`, `number`, `app_id`, `instance_id`, `name`) that a text names.

    The first kind of name that fits any of them decides, so a name cannot hide another VM's id.
    """
    compact = text.lower().replace("-", "")
    number = int(text) if _INTEGER.fullmatch(text) else -1
    app_id, instance_id = bare_app_id(text), bare_instance_id(text)
    tests = (
        lambda vm: vm.id.lower().replace("-", "") == compact,
        lambda vm: text.startswith("cvm_") and hashed("cvm", vm.id) == text,
        lambda vm: vm.number == number,
        lambda vm: vm.app_id == app_id,
        lambda vm: instance_id is not None and vm.instance_id == instance_id,
        lambda vm: vm.name == text,
    )
    return next((found for test in tests if (found := [vm for vm in vms if test(vm)])), [])


def moment(milliseconds: int) -> str:
    """A time as the interface writes it: ISO 8601, UTC."""
    at = datetime.fromtimestamp(milliseconds / 1000, UTC)
    return at.isoformat(timespec="milliseconds").replace("+00:00", "Z")
