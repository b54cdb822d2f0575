"""`casemate vm`: the VMs of a running service."""

from __future__ import annotations

import json
import sys
import time
from pathlib import Path
from typing import Any

import click

from cli.terminal import plain, print_table
from core.errors import CasemateError, Invalid, NotFound

BOOT_S = 600.0


@click.group()
def vm() -> None:
    """Virtual machines."""


def _client() -> Any:
    from cli.client import Client

    return Client.found()


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=2))


def _find(client: Any, given: str) -> dict[str, Any]:
    """The VM of an id, an id's beginning or a name; refuses what fits several."""
    found: list[dict[str, Any]] = client.call("prpc/Status", keyword=given)["vms"]
    fits = [each for each in found if each["id"] == given] or [
        each for each in found if each["name"] == given or each["id"].startswith(given)
    ]
    if not fits:
        raise NotFound(f"there is no VM {given}")
    if len(fits) > 1:
        raise Invalid(
            f"{given} fits {len(fits)} VMs; give the id: {', '.join(e['id'] for e in fits)}"
        )
    return fits[0]


@vm.command()
@click.argument("keyword", default="")
@click.option("--json", "as_json", is_flag=True, help="The service's own answer.")
def ls(keyword: str, as_json: bool) -> None:
    """List VMs."""
    listing = _client().call("prpc/Status", keyword=keyword, brief=not as_json)
    if as_json:
        _print_json(listing["vms"])
        return
    rows = [
        (each["id"], each["name"], each["status"], each["uptime"], each["app_id"])
        for each in listing["vms"]
    ]
    print_table(("ID", "NAME", "STATUS", "UP", "APP"), rows)


@vm.command()
@click.argument("vm_id", metavar="VM")
@click.option("--json", "as_json", is_flag=True, help="The service's own answer.")
def info(vm_id: str, as_json: bool) -> None:
    """Show one VM by id, beginning of an id, or name."""
    client = _client()
    found = client.call("prpc/GetInfo", id=_find(client, vm_id)["id"])["info"]
    if as_json:
        _print_json(found)
        return
    configuration = found["configuration"]
    shown = {
        "id": found["id"],
        "name": found["name"],
        "status": found["status"],
        "up": found["uptime"],
        "boot": found["boot_error"] or found["boot_progress"],
        "app": found["app_id"],
        "instance": found["instance_id"] or "",
        "image": configuration["image"],
        "size": f"{configuration['vcpu']} vCPU, {configuration['memory']} MB, "
        f"{configuration['disk_size']} GB",
        "TEE": _tee(found),
    }
    for port in configuration["ports"]:
        shown[f"port {port['vm_port']}"] = f"{port['host_address']}:{port['host_port']}"
    for name, value in shown.items():
        click.echo(f"{name + ':':10} {plain(value)}")
    for event in found["events"]:
        at = time.strftime("%H:%M:%S", time.localtime(event["timestamp"] / 1000))
        click.echo(plain(f"{at}   {event['event']}: {event['body']}"))


def _tee(found: dict[str, Any]) -> str:
    if found["simulated_tee"]:
        return f"simulated ({found['simulated_tee']})"
    return "none" if found["configuration"]["no_tee"] else "real"


@vm.command()
@click.option("--name", required=True)
@click.option("--image", default="", help="Default: the newest production image.")
@click.option(
    "--compose", "compose_file", required=True, type=click.Path(exists=True, path_type=Path),
    help="An app-compose document (JSON), or a docker-compose file (YAML), which is wrapped into one.",
)  # fmt: skip
@click.option("--vcpu", default=1, show_default=True)
@click.option("--memory", default=2048, show_default=True, help="MB.")
@click.option("--disk", default=10, show_default=True, help="GB.")
@click.option(
    "--port", "ports", multiple=True, metavar="[tcp:][ADDRESS:]HOST:VM", help="Repeatable."
)
@click.option("--user-config", type=click.Path(exists=True, path_type=Path))
@click.option("--stopped", is_flag=True, help="Do not start it.")
@click.option("--no-tee", is_flag=True, help="A development VM without any TEE.")
@click.option("--wait/--no-wait", default=True, help="Show the boot until the app runs.")
@click.option("--json", "as_json", is_flag=True)
def create(compose_file: Path, ports: tuple[str, ...], **given: Any) -> None:
    """Make a VM and start it."""
    client = _client()
    config = given["user_config"]
    made = client.call(
        "prpc/CreateVm",
        name=given["name"],
        image=given["image"] or _newest_image(client),
        compose_file=compose_text(compose_file, given["name"]),
        vcpu=given["vcpu"],
        memory=given["memory"],
        disk_size=given["disk"],
        ports=[parse_port(each) for each in ports],
        user_config=config.read_text() if config else "",
        stopped=given["stopped"],
        no_tee=given["no_tee"],
    )
    if given["as_json"]:
        _print_json(made)
    else:
        click.echo(made["id"])
    if given["wait"] and not given["stopped"] and not given["as_json"]:
        watch_boot(client, made["id"])


def compose_text(path: Path, name: str) -> str:
    """The app-compose text of a file: as it is when JSON, wrapped when it is docker-compose YAML."""
    text = path.read_text()
    if text.lstrip().startswith("{"):
        return text
    return json.dumps(
        {
            "manifest_version": 2,
            "name": name,
            "runner": "docker-compose",
            "docker_compose_file": text,
            "allowed_envs": [],
        }
    )


def parse_port(text: str) -> dict[str, Any]:
    """`[tcp:|udp:][ADDRESS:]HOST:VM` as a PortMapping; Invalid when it is not of that form."""
    protocol, rest = "tcp", text
    for each in ("tcp", "udp"):
        if text.startswith(f"{each}:"):
            protocol, rest = each, text[len(each) + 1 :]
    address, _, host_and_vm = rest.rpartition(":")
    address, _, host = address.rpartition(":") if ":" in address else ("", "", address)
    if not (host.isdigit() and host_and_vm.isdigit()):
        raise Invalid.field("--port", f"{text} is not [tcp:|udp:][ADDRESS:]HOST:VM")
    return {
        "protocol": protocol,
        "host_address": address.strip("[]"),
        "host_port": int(host),
        "vm_port": int(host_and_vm),
    }


def _newest_image(client: Any) -> str:
    images = [each for each in client.call("prpc/ListImages")["images"] if not each["is_dev"]]
    if not images:
        raise NotFound("this host has no image; build one: casemate image build")
    newest = max(images, key=lambda each: [int(p) for p in each["version"].split(".")[:3]])
    return str(newest["name"])


def watch_boot(client: Any, vm_id: str) -> None:
    """Prints each step of a boot until the app runs; CasemateError tells why it does not."""
    began, shown = time.monotonic(), ""
    while time.monotonic() - began < BOOT_S:
        found = client.call("prpc/GetInfo", id=vm_id)["info"]
        if found is None or found["boot_error"] or found["status"] not in ("running", "starting"):
            raise CasemateError((found or {}).get("boot_error") or "the VM ended while it booted")
        if found["boot_progress"] != shown:
            shown = found["boot_progress"]
            click.echo(f"{time.monotonic() - began:7.1f} s  {plain(shown)}", err=True)
        if shown == "done":
            return
        time.sleep(0.3)
    raise CasemateError(f"the VM did not finish its boot within {BOOT_S:.0f} s")


@vm.command()
@click.argument("vm_id", metavar="VM")
@click.option("--wait/--no-wait", default=True, help="Show the boot until the app runs.")
def start(vm_id: str, wait: bool) -> None:
    """Start a VM."""
    client = _client()
    found = _find(client, vm_id)
    client.call("prpc/StartVm", id=found["id"])
    if wait:
        watch_boot(client, found["id"])


@vm.command()
@click.argument("vm_id", metavar="VM")
def stop(vm_id: str) -> None:
    """End a VM by force; `shutdown` asks it."""
    client = _client()
    client.call("prpc/StopVm", id=_find(client, vm_id)["id"])


@vm.command()
@click.argument("vm_id", metavar="VM")
def shutdown(vm_id: str) -> None:
    """Ask a VM to power off."""
    client = _client()
    client.call("prpc/ShutdownVm", id=_find(client, vm_id)["id"])


@vm.command()
@click.argument("vm_id", metavar="VM")
@click.option("--yes", is_flag=True, help="Do not ask.")
def remove(vm_id: str, yes: bool) -> None:
    """Remove a VM with its disk."""
    client = _client()
    found = _find(client, vm_id)
    if not yes:
        click.confirm(f"Remove {found['name']} ({found['id']}) and its disk?", abort=True)
    client.call("prpc/RemoveVm", id=found["id"])


@vm.command()
@click.argument("vm_id", metavar="VM")
@click.option("--compose", "compose_file", type=click.Path(exists=True, path_type=Path))
@click.option("--user-config", type=click.Path(exists=True, path_type=Path))
@click.option("--vcpu", type=int)
@click.option("--memory", type=int, help="MB.")
@click.option("--disk", type=int, help="GB; can only grow.")
@click.option("--image")
def update(
    vm_id: str,
    compose_file: Path | None,
    user_config: Path | None,
    vcpu: int | None,
    memory: int | None,
    disk: int | None,
    image: str | None,
) -> None:
    """Change a VM in one call: all of it or nothing."""
    client = _client()
    found = _find(client, vm_id)
    client.call(
        "prpc/UpdateVm",
        id=found["id"],
        compose_file=compose_text(compose_file, found["name"]) if compose_file else "",
        user_config=user_config.read_text() if user_config else "",
        vcpu=vcpu,
        memory=memory,
        disk_size=disk,
        image=image,
    )


@vm.command()
@click.argument("vm_id", metavar="VM")
@click.argument("ports", nargs=-1, metavar="[[tcp:][ADDRESS:]HOST:VM]...")
def ports(vm_id: str, ports: tuple[str, ...]) -> None:
    """Replace a VM's port mappings (at its next start)."""
    client = _client()
    mappings = [parse_port(each) for each in ports]
    found = _find(client, vm_id)
    client.call("prpc/UpdateVm", id=found["id"], update_ports=True, ports=mappings)


@vm.command()
@click.argument("vm_id", metavar="VM")
@click.option("-n", "--lines", default=100, show_default=True)
@click.option("-f", "--follow", is_flag=True)
@click.option("--channel", type=click.Choice(["serial", "stdout", "stderr"]), default="serial")
def logs(vm_id: str, lines: int, follow: bool, channel: str) -> None:
    """Print a VM's serial log."""
    client = _client()
    found = _find(client, vm_id)
    path = f"/logs?id={found['id']}&lines={lines}&ch={channel}"
    for piece in client.follow(path + ("&follow=true" if follow else "")):
        sys.stdout.write(piece)
        sys.stdout.flush()
