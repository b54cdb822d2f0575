"""`casemate vm`: the VMs of a running service."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any

import click

from cli import boot
from cli.completion import vms
from cli.deploy import create, update
from cli.ports import ports
from cli.terminal import plain, print_json, print_table, say, shown
from cli.variables import env

if TYPE_CHECKING:
    from cli.client import Client

HEARTBEAT = "[vmm heartbeat]\n"

VM = click.argument("vm_id", metavar="VM", shell_complete=vms)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")


@click.group()
def vm() -> None:
    """Virtual machines.

    VM is an id, the beginning of an id, or a name.
    """


for command in (create, update, env, ports):
    vm.add_command(command)


def _client() -> Client:
    from cli.client import Client

    return Client.found()


@vm.command()
@click.argument("keyword", default="")
@AS_JSON
def ls(keyword: str, as_json: bool) -> None:
    """List VMs, or those whose name, id, app id or image contains KEYWORD."""
    listing = _client().call("prpc/Status", keyword=keyword, brief=not as_json)
    if as_json:
        print_json(listing["vms"])
        return
    head = ("ID", "NAME", "STATUS", "UP", "BOOT", "APP")
    print_table(head, [_row(each) for each in listing["vms"]])


def _row(found: dict[str, Any]) -> tuple[str, ...]:
    told = "failed" if found["boot_error"] else found["boot_progress"]
    boot_word = told if found["status"] in ("running", "starting") else ""
    names = ("id", "name", "status", "uptime")
    return (*(str(found[name]) for name in names), boot_word, found["app_id"])


@vm.command()
@VM
@AS_JSON
def info(vm_id: str, as_json: bool) -> None:
    """Show one VM: what it is, where it answers, what happened to it."""
    client = _client()
    found = client.info(client.vm(vm_id)["id"])
    if as_json:
        print_json(found)
        return
    for name, value in _facts(found).items():
        click.echo(f"{name + ':':10} {plain(value)}".rstrip())
    for event in found["events"]:
        at = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event["timestamp"] / 1000))
        click.echo(plain(f"{at}  {event['event']}: {event['body']}"))


def _facts(found: dict[str, Any]) -> dict[str, str]:
    configuration = found["configuration"]
    size = "{vcpu} vCPU, {memory} MB, {disk_size} GB".format(**configuration)
    facts = {
        "id": found["id"],
        "name": found["name"],
        "status": found["status"],
        "up": found["uptime"],
        "boot": found["boot_error"] or found["boot_progress"],
        "app": found["app_id"],
        "instance": found["instance_id"] or "",
        "URL": found["app_url"] or "",
        "image": configuration["image"],
        "size": size,
        "TEE": _tee(found),
    }
    for port in configuration["ports"]:
        outside = f"{port['host_address']}:{port['host_port']}"
        facts[f"port {port['vm_port']}/{port['protocol']}"] = outside
    return facts


def _tee(found: dict[str, Any]) -> str:
    if found["simulated_tee"]:
        return f"simulated ({found['simulated_tee']})"
    return "none" if found["configuration"]["no_tee"] else "real"


@vm.command()
@VM
@boot.WAIT
@AS_JSON
def start(vm_id: str, wait: bool, as_json: bool) -> None:
    """Start a VM; a running one stays as it is."""
    client = _client()
    found = _told(client, vm_id, "StartVm", as_json)
    if wait:
        boot.watch(client, found)


@vm.command()
@VM
@AS_JSON
def stop(vm_id: str, as_json: bool) -> None:
    """End a VM by force; `shutdown` asks it."""
    _told(_client(), vm_id, "StopVm", as_json)


@vm.command()
@VM
@AS_JSON
def shutdown(vm_id: str, as_json: bool) -> None:
    """Ask a VM to power off."""
    _told(_client(), vm_id, "ShutdownVm", as_json)


@vm.command()
@VM
@click.option("-y", "--yes", is_flag=True, help="Do not ask, not even on a terminal.")
@AS_JSON
def remove(vm_id: str, yes: bool, as_json: bool) -> None:
    """Remove a VM with its disk."""
    client = _client()
    found = client.vm(vm_id)
    if not yes and sys.stdin.isatty():
        question = f"Remove {plain(found['name'])} ({found['id']}) and its disk?"
        click.confirm(question, abort=True, err=True)
    _told(client, found["id"], "RemoveVm", as_json)


def _told(client: Client, given: str, verb: str, as_json: bool) -> str:
    """Says a verb to a VM; its id."""
    vm_id: str = client.vm(given)["id"]
    client.call(f"prpc/{verb}", id=vm_id)
    if as_json:
        print_json({"id": vm_id})
    return vm_id


@vm.command()
@VM
@click.option(
    "-n",
    "--lines",
    default=100,
    show_default=True,
    type=click.IntRange(min=0),
    help="From the end.",
)
@click.option("-f", "--follow", is_flag=True, help="Go on with what comes, until Ctrl-C.")
@click.option(
    "--channel", type=click.Choice(["serial", "stdout", "stderr"]), default="serial",
    help="The guest's console, or what QEMU says.",
)  # fmt: skip
@click.option("--ansi", is_flag=True, help="Keep colours (all sequences, when not on a terminal).")
@click.option(
    "--archived", type=click.IntRange(min=1), metavar="N", help="An older segment; 1 is the newest."
)
def logs(
    vm_id: str, lines: int, follow: bool, channel: str, ansi: bool, archived: int | None
) -> None:
    """Print a VM's log."""
    if follow and archived:
        raise click.UsageError("an archived segment does not grow: --follow or --archived")
    client = _client()
    path = f"/logs?id={client.vm(vm_id)['id']}&lines={lines}&ch={channel}&archived={archived or 0}"
    flags = "".join(f"&{k}=true" for k, v in (("follow", follow), ("ansi", ansi)) if v)
    pieces = (piece.replace(HEARTBEAT, "") for piece in client.follow(path + flags))
    for piece in shown(pieces, keep_colour=ansi) if sys.stdout.isatty() else pieces:
        click.echo(piece, nl=False, color=True)
    if follow:
        say("the log has ended")
