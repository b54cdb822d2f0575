"""The app-compose document that the command line sends: as its author wrote it, or made from a docker-compose file."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import click

from attest import compose
from cli.terminal import say
from core.errors import Invalid

COMPOSE = click.option(
    "--compose", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A docker-compose file, which is wrapped into an app-compose document.",
)  # fmt: skip
APP_COMPOSE = click.option(
    "--app-compose", type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="An app-compose document (JSON), sent byte by byte.",
)  # fmt: skip
# What a wrapped document says beside the docker-compose text.
FIELDS = (
    click.option(
        "--key-provider",
        type=click.Choice(["none", "kms", "local", "tpm"]),
        help="Who gives the app its keys (images built here know no local provider).",
    ),
    click.option("--public-logs/--no-public-logs", default=None, help="Anyone may read app logs."),
    click.option(
        "--public-sysinfo/--no-public-sysinfo", default=None, help="Anyone may read the load."
    ),
    click.option(
        "--public-tcbinfo/--no-public-tcbinfo", default=None, help="Anyone may read measurements."
    ),
    click.option(
        "--secure-time/--no-secure-time", default=None, help="Wait for the right time at boot."
    ),
    click.option("--swap", "swap_size", metavar="SIZE", help="Swap in the guest, like 2G."),
    click.option("--storage-fs", type=click.Choice(["ext4", "zfs"]), help="Of the data disk."),
    click.option(
        "--pre-launch-script",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A file that runs before the app starts.",
    ),
    click.option(
        "--init-script",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A file that runs early in the boot.",
    ),
)
_SCRIPTS = ("pre_launch_script", "init_script")
_FIELD_NAMES = (
    *("key_provider", "public_logs", "public_sysinfo", "public_tcbinfo"),
    *("secure_time", "swap_size", "storage_fs"),
    *_SCRIPTS,
)


def text_of(
    given: Mapping[str, Any], name: str, before: str | None, variables: Iterable[str] | None
) -> str | None:
    """The document to send, None when the options ask for none; `before` is what the VM has.

    `variables` are the names that the app is to receive, None when they stay as they are.
    """
    fields = {key: given[key] for key in _FIELD_NAMES if given[key] is not None}
    wrapped, raw = given["compose"], given["app_compose"]
    if raw is not None:
        return _raw(raw, wrapped is not None or bool(fields), variables)
    if wrapped is None and not fields:
        return None if before is None or variables is None else allowing(before, variables)
    # The key of the variables is the KMS's.
    new = compose.new(name) | compose.keys_from("kms" if variables else "none")
    document = parsed(before) if before else new
    if wrapped is not None:
        document["docker_compose_file"] = _docker_compose(wrapped)
    for key, value in fields.items():
        document[key] = value.read_text() if key in _SCRIPTS else value
    if "key_provider" in fields:
        document |= compose.keys_from(fields["key_provider"])
    text = compose.text_of(document)
    return text if variables is None else allowing(text, variables)


def _raw(path: Path, has_fields: bool, variables: Iterable[str] | None) -> str:
    if has_fields:
        raise click.UsageError(
            "--app-compose is sent as it is and takes no options of the document"
        )
    text = path.read_bytes().decode()
    missing = set(variables or ()) - set(allowed(text))
    if missing:
        # The file is what is measured: it is not written anew behind its author's back.
        raise Invalid.field("allowed_envs", f"add {', '.join(sorted(missing))} in {path}")
    return text


def _docker_compose(path: Path) -> str:
    import yaml

    text = path.read_text()
    try:
        document = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise Invalid.field("compose", f"{path} is not YAML: {error}") from None
    if not isinstance(document, dict) or not isinstance(document.get("services"), dict):
        hint = "; is it an app-compose document (--app-compose)?" if text[:1] == "{" else ""
        raise Invalid.field("compose", f"{path} has no services{hint}")
    return text


def parsed(text: str) -> dict[str, Any]:
    """An app-compose document's fields; Invalid when it is none."""
    try:
        document = json.loads(text)
    except ValueError as error:
        raise Invalid.field("app-compose", f"must be JSON: {error}") from None
    if not isinstance(document, dict):
        raise Invalid.field("app-compose", "must be a JSON object")
    return document


def allowed(text: str) -> list[str]:
    """The names of the variables that an app-compose text lets in."""
    return [str(name) for name in parsed(text).get("allowed_envs") or []]


def allowing(text: str, names: Iterable[str]) -> str:
    """The text with exactly these names let in: the very same text when it says so already."""
    wanted = list(names)
    if set(wanted) == set(allowed(text)):
        return text
    return compose.text_of({**parsed(text), "allowed_envs": wanted})


def app_id(text: str) -> str:
    """The app id that a document has when none is given."""
    return compose.app_id(text.encode()).hex()


def say_hash_change(before: str, after: str) -> None:
    """Tells that what is measured changes: a KMS may have to be told of the new hash."""
    if before != after:
        say(f"compose hash: {compose.compose_hash(after.encode()).hex()}")
