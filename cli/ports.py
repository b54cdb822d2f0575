"""`casemate vm ports`: the host ports that lead into a VM."""

from __future__ import annotations

from typing import Any

import click

from cli.completion import vms
from cli.terminal import print_json, print_table
from core.errors import Invalid, NotFound

FORM = "[tcp:|udp:][ADDRESS:]HOST:VM"


def parse(text: str) -> dict[str, Any]:
    """`[tcp:|udp:][ADDRESS:]HOST:VM` as a PortMapping; Invalid when it is not of that form."""
    outside, _, inside = text.rpartition(":")
    if not _is_port(inside):
        raise Invalid.field("port", f"{text} is not {FORM}")
    return {**parse_outside(outside), "vm_port": int(inside)}


def parse_outside(text: str) -> dict[str, Any]:
    """The host's side of a mapping, `[tcp:|udp:][ADDRESS:]HOST`."""
    protocol, rest = "tcp", text
    for each in ("tcp", "udp"):
        if text.startswith(f"{each}:"):
            protocol, rest = each, text.removeprefix(f"{each}:")
    address, _, host = rest.rpartition(":")
    if not _is_port(host):
        raise Invalid.field("port", f"{text} is not [tcp:|udp:][ADDRESS:]HOST")
    return {"protocol": protocol, "host_address": address.strip("[]"), "host_port": int(host)}


def _is_port(text: str) -> bool:
    return text.isascii() and text.isdigit() and len(text) <= 5


def without(mappings: list[dict[str, Any]], removed: str) -> list[dict[str, Any]]:
    """The mappings but those that a host's side names; NotFound when it names none."""
    named = parse_outside(removed)
    asked = {key: value for key, value in named.items() if value != ""}
    kept = [each for each in mappings if any(each[key] != asked[key] for key in asked)]
    if len(kept) == len(mappings):
        raise NotFound(f"the VM has no mapping of {removed}")
    return kept


@click.command()
@click.argument("vm_id", metavar="VM", shell_complete=vms)
@click.option("--add", multiple=True, metavar=FORM, help="Add a mapping; repeatable.")
@click.option(
    "--remove",
    multiple=True,
    metavar="[tcp:|udp:][ADDRESS:]HOST",
    help="Take one away; repeatable.",
)
@click.option("--clear", is_flag=True, help="Take all away first.")
@click.option("--json", "as_json", is_flag=True, help="One JSON list instead of a table.")
def ports(
    vm_id: str, add: tuple[str, ...], remove: tuple[str, ...], clear: bool, as_json: bool
) -> None:
    """List a VM's port mappings, or change them for its next start."""
    from cli.client import Client

    added = [parse(each) for each in add]
    client = Client.found()
    found = client.vm(vm_id)
    mappings = client.info(found["id"])["configuration"]["ports"]
    if add or remove or clear:
        wanted = [] if clear else mappings
        for each in remove:
            wanted = without(wanted, each)
        client.call("prpc/UpdateVm", id=found["id"], update_ports=True, ports=[*wanted, *added])
        mappings = client.info(found["id"])["configuration"]["ports"]
    if as_json:
        print_json(mappings)
    else:
        print_table(("PROTOCOL", "HOST", "VM"), [_row(each) for each in mappings])


def _row(mapping: dict[str, Any]) -> tuple[str, str, str]:
    address = mapping["host_address"]
    host = f"[{address}]" if ":" in address else address
    return (mapping["protocol"], f"{host}:{mapping['host_port']}", str(mapping["vm_port"]))
