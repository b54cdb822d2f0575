"""`casemate kms`: the key service, and the operator's hand on its policy file."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.terminal import print_json
from core.errors import Invalid, NotFound

if TYPE_CHECKING:
    from core.policy_file import Document

_SIZES = {"app": 40, "compose": 64, "device": 64, "os-image": 64, "kms-mr": 64}


@click.group(invoke_without_command=True)
@click.option(
    "-c",
    "--config",
    "config_file",
    type=click.Path(path_type=Path),
    required=True,
    help="TOML file (docs/kms.md has every key).",
)
@click.option("--parent", type=int, hidden=True, help="End when this process is not our parent.")
@click.pass_context
def kms(context: click.Context, config_file: Path, parent: int | None) -> None:
    """Run the key service, or change whom its policy file allows."""
    context.obj = config_file
    if context.invoked_subcommand is None:
        from cli.kms_serve import run

        run(config_file, parent)


def _entries(command: Callable[..., None]) -> Callable[..., None]:
    for option, help_text in (
        ("--kms-mr", "mr_aggregated of a KMS."),
        ("--os-image", "Hash of an OS image."),
        ("--any-device", "The app (or, without one, the KMS) may run on every device."),
        ("--device", "Device id that the app (or, without one, the KMS) may run on."),
        ("--compose", "Compose hash of the app."),
        ("--app", "App id."),
    ):
        flag: dict[str, Any] = {"is_flag": True} if option == "--any-device" else {}
        command = click.option(option, help=help_text, **flag)(command)
    return click.pass_obj(command)


@kms.command()
@_entries
def allow(config_file: Path, **entries: Any) -> None:
    """Add to the policy file."""
    _change(config_file, entries, _allow)


@kms.command()
@_entries
def deny(config_file: Path, **entries: Any) -> None:
    """Take out of the policy file; an app alone goes with all its entries."""
    _change(config_file, entries, _deny)


@kms.command("list")
@click.pass_obj
def list_(config_file: Path) -> None:
    """Show the policy file."""
    from core import policy_file

    print_json(policy_file.read(_policy_file(config_file)))


def _policy_file(config_file: Path) -> Path:
    from kms import settings

    given = settings.load(config_file)
    if given.core.auth_api.type != "file":
        raise Invalid.field("core.auth_api.type", "must be file for this KMS to have a policy file")
    return given.core.auth_api.file.path


def _change(
    config_file: Path, entries: dict[str, Any], edit: Callable[[Document, dict[str, Any]], None]
) -> None:
    from core import policy_file

    given = {name.replace("_", "-"): value for name, value in entries.items() if value}
    for name, size in _SIZES.items():
        if name in given and not re.fullmatch(rf"(0x)?[0-9a-fA-F]{{{size}}}", given[name]):
            raise Invalid.field(f"--{name}", f"must be {size} hex digits")
    if not given or ("compose" in given and "app" not in given):
        raise click.UsageError("name an app, an OS image or a KMS; a compose hash needs its app")
    print_json(
        policy_file.change(_policy_file(config_file), lambda document: edit(document, given))
    )


def _allow(document: Document, given: dict[str, Any]) -> None:
    from core.policy_file import add

    if "os-image" in given:
        add(document.setdefault("osImages", []), given["os-image"])
    if "kms-mr" in given:
        add(document.setdefault("kms", {}).setdefault("mrAggregated", []), given["kms-mr"])
    where = _place(document, given)
    if "compose" in given:
        add(where.setdefault("composeHashes", []), given["compose"])
    if "device" in given:
        add(where.setdefault("devices", []), given["device"])
    if "any-device" in given:
        where["allowAnyDevice"] = True


def _place(document: Document, given: dict[str, Any]) -> dict[str, Any]:
    """The entry that devices belong to: the app's, made when it has none, else the KMS's."""
    from core.policy_file import find_app, normal

    if "app" not in given:
        kms_entry: dict[str, Any] = document.setdefault("kms", {})
        return kms_entry
    apps = document.setdefault("apps", {})
    entry: dict[str, Any] = find_app(document, given["app"]) or apps.setdefault(
        normal(given["app"]), {"composeHashes": [], "devices": [], "allowAnyDevice": False}
    )
    return entry


def _deny(document: Document, given: dict[str, Any]) -> None:
    from core.policy_file import drop, find_app, normal

    gone = []
    if "os-image" in given:
        gone.append(drop(document.get("osImages", []), given["os-image"]))
    if "kms-mr" in given:
        gone.append(drop(document.get("kms", {}).get("mrAggregated", []), given["kms-mr"]))
    app = "app" in given
    entry = find_app(document, given["app"]) if app else document.get("kms", {})
    if entry is None:
        raise NotFound(f"the policy file has no app {given['app']}")
    if "compose" in given:
        gone.append(drop(entry.get("composeHashes", []), given["compose"]))
    if "device" in given:
        gone.append(drop(entry.get("devices", []), given["device"]))
    if "any-device" in given:
        gone.append(bool(entry.pop("allowAnyDevice", False)))
    if app and not {"compose", "device", "any-device"} & set(given):
        names = [name for name in document["apps"] if normal(name) == normal(given["app"])]
        gone.append(bool([document["apps"].pop(name) for name in names]))
    if not all(gone):
        raise NotFound("the policy file has no such entry")
