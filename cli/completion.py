"""`casemate completion`: the shell's side of completion, and the names that it offers."""

from __future__ import annotations

import contextlib
import re
from typing import TYPE_CHECKING, Any

import click
from click.shell_completion import CompletionItem, get_completion_class

if TYPE_CHECKING:
    from cli.client import Client

# A key press waits this long for a service and no longer.
PATIENCE_S = 0.5
# Names with other characters would need quoting; their ids are offered alone.
_SIMPLE = re.compile(r"[\w.@~^-]+")


@click.command()
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
def completion(shell: str) -> None:
    """Print what makes a shell complete casemate's commands, VMs and images.

    For bash, add to ~/.bashrc: eval "$(casemate completion bash)"
    """
    from cli.main import casemate

    kind = get_completion_class(shell)
    assert kind is not None  # click knows all three
    click.echo(kind(casemate, {}, "casemate", "_CASEMATE_COMPLETE").source())


def vms(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The running service's VMs, by name and by id."""
    found = []
    for vm in _asked("prpc/Status", brief=True).get("vms", []):
        names = [vm["id"], *([vm["name"]] if _SIMPLE.fullmatch(vm["name"]) else [])]
        found += [CompletionItem(n, help=vm["status"]) for n in names if n.startswith(incomplete)]
    return found


def images(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The running service's images."""
    found = _asked("prpc/ListImages").get("images", [])
    return [
        CompletionItem(each["name"], help="dev" if each["is_dev"] else "production")
        for each in found
        if each["name"].startswith(incomplete)
    ]


def _asked(path: str, **message: Any) -> dict[str, Any]:
    from core.errors import CasemateError

    # Whoever presses a key wants names, not the reason why there are none.
    with contextlib.suppress(CasemateError, OSError):
        answer: dict[str, Any] = _client().call(path, **message) or {}
        return answer
    return {}


def _client() -> Client:
    from cli.client import Client

    client = Client.found()
    client.timeout_s = PATIENCE_S
    return client
