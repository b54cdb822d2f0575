"""The app-compose document behind the console's forms: a docker-compose text and some switches, or the raw text (pure)."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from werkzeug.datastructures import MultiDict

from attest import compose

Form = MultiDict[str, str]

# The switches and what a new document has them at.
FLAGS: dict[str, bool] = {
    name: compose.new("")[name]
    for name in (
        *("gateway_enabled", "public_logs", "public_sysinfo"),
        *("public_tcbinfo", "secure_time"),
    )
}
TEXTS = (
    *("docker_compose_file", "pre_launch_script", "init_script"),
    *("key_provider_id", "storage_fs", "swap_size"),
)


def shown(text: str) -> dict[str, Any]:
    """What the form shows of a document; of one that is none, what it shows of a new one."""
    given = _parsed(text)
    flags = {name: given.get(name) is True for name in FLAGS}
    if given.get("public_tcbinfo") is None:
        flags["public_tcbinfo"] = FLAGS["public_tcbinfo"]
    texts = {name: lines(_text(given.get(name))) for name in TEXTS}
    envs = given.get("allowed_envs")
    names = [name for name in envs if isinstance(name, str)] if isinstance(envs, list) else []
    return {**flags, **texts, "key_provider": _provider(given), "allowed_envs": names}


def wanted(form: Form, before: str = "") -> str:
    """The app-compose text that a form asks for; `before`, the VM's own, stays byte for byte when nothing changed."""
    if form.get("compose_mode") == "raw":
        raw = lines(form.get("compose_file", ""))
        return before if raw == lines(before) else raw
    new = compose.new(form.get("name", "").strip())
    has = shown(before or compose.text_of(new))
    changes = {name: value for name, value in _asked(form, has).items() if value != has[name]}
    if before and not changes:
        return before
    if "key_provider" in changes:
        changes |= compose.keys_from(changes["key_provider"])
    document = {**(_parsed(before) or new), **changes}
    return compose.text_of({key: value for key, value in document.items() if value != ""})


def lines(text: str) -> str:
    """A text as it was typed: a browser sends every line end as two characters."""
    return text.replace("\r\n", "\n")


def _asked(form: Form, has: Mapping[str, Any]) -> dict[str, Any]:
    asked: dict[str, Any] = {name: name in form for name in FLAGS}
    asked |= {name: lines(form.get(name, "")) for name in TEXTS}
    asked["key_provider"] = form.get("key_provider") or has["key_provider"]
    names = form.get("allowed_envs")
    asked["allowed_envs"] = has["allowed_envs"] if names is None else names.split()
    return asked


def _parsed(text: str) -> dict[str, Any]:
    try:
        given = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return given if isinstance(given, dict) else {}


def _text(value: object) -> str:
    # A list of scripts stays as it is: the raw text is the place to change it.
    return str(value) if isinstance(value, str | int) and not isinstance(value, bool) else ""


def _provider(given: Mapping[str, Any]) -> str:
    by_flags = "local" if given.get("local_key_provider_enabled") is True else "none"
    by_flags = "kms" if given.get("kms_enabled") is True else by_flags
    named = given.get("key_provider")
    return named if isinstance(named, str) and named else by_flags
