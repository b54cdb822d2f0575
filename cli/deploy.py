"""`casemate vm create` and `casemate vm update`: one set of options, one call to the service each."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli import boot, compose, variables
from cli.completion import images, vms
from cli.ports import FORM, parse
from cli.terminal import print_json
from core.errors import Invalid, NotFound

if TYPE_CHECKING:
    from cli.client import Client

T = TypeVar("T", bound=Callable[..., Any])
# In a list's place: take all away.
NONE = "none"


class Size(click.ParamType[int]):
    """A number of `unit`s (M or G), or one with M, G or T."""

    def __init__(self, unit: str) -> None:
        self.name = f"{unit}B"
        self.unit = unit

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        """The number of units; a size that is no whole number of them is refused."""
        if isinstance(value, int):
            return value
        match = re.fullmatch(r"(\d{1,9})([MGT]?)B?", value.strip().upper(), re.ASCII)
        if not match:
            self.fail(f"{value} is not a size like 4096 or 4G", param, ctx)
        power = "MGT".index(match[2] or self.unit) - "MGT".index(self.unit)
        if power < 0:
            self.fail(f"{value} is not a whole number of {self.name}", param, ctx)
        factor: int = 1024**power
        return int(match[1]) * factor


_SETTINGS = (
    compose.COMPOSE,
    compose.APP_COMPOSE,
    *compose.FIELDS,
    variables.ENV,
    variables.ENV_FILE,
    variables.KMS_SIGNER,
    click.option("--vcpu", type=click.IntRange(min=1), help="Number of processors."),
    click.option("--memory", type=Size("M"), help="MB, or with a unit: 4G."),
    click.option("--disk", type=Size("G"), help="GB; can only grow."),
    click.option("--image", shell_complete=images, help="Name of a guest image."),
    click.option(
        "--port",
        "ports",
        multiple=True,
        metavar=FORM,
        help="A host port that leads into the VM; repeatable.",
    ),
    click.option(
        "--user-config",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="A file for the app; not encrypted.",
    ),
    click.option(
        "--net",
        "nets",
        multiple=True,
        metavar="user|passt|custom|bridge[:NAME]",
        help="A network card; repeatable.",
    ),
    click.option(
        "--gpu",
        "gpus",
        multiple=True,
        metavar="SLOT|all",
        help="A GPU by its PCI slot; repeatable.",
    ),
    click.option(
        "--kms-url", "kms_urls", multiple=True, help="Where the guest finds its KMS; repeatable."
    ),
    click.option(
        "--gateway-url",
        "gateway_urls",
        multiple=True,
        help="Where the guest finds a gateway; repeatable.",
    ),
)


def settings(command: T) -> T:
    """The options that create and update have in common."""
    for option in reversed(_SETTINGS):
        command = option(command)
    return command


@click.command()
@click.option("--name", required=True, help="Need not be unique.")
@settings
@click.option("--app-id", metavar="HEX", help="Default: from the app-compose document.")
@click.option("--hugepages", is_flag=True, help="Memory in huge pages.")
@click.option("--pin-numa", is_flag=True, help="On one NUMA node.")
@click.option("--no-tee", is_flag=True, help="A development VM without any TEE.")
@click.option(
    "--simulated-tee",
    metavar="PLATFORM",
    help="Development only: dstack-tdx or dstack-amd-sev-snp.",
)
@click.option("--stopped", is_flag=True, help="Do not start it.")
@boot.WAIT
@click.option("--json", "as_json", is_flag=True, help="JSON instead of the id alone.")
def create(name: str, stopped: bool, wait: bool, as_json: bool, **given: Any) -> None:
    """Make a VM and start it.

    Without --image it gets the newest production image; without sizes 1 vCPU, 2048 MB and 10 GB.
    """
    from cli.client import Client

    envs = variables.read(given["given"], given["env_file"])
    text = compose.text_of(given, name, None, envs)
    if text is None or not (given["compose"] or given["app_compose"]):
        raise click.UsageError("an app is needed: --compose FILE or --app-compose FILE")
    client = Client.found()
    message = {"vcpu": 1, "memory": 2048, "disk_size": 10, **_common(given)}
    if envs:
        app_id = (given["app_id"] or compose.app_id(text)).lower().removeprefix("0x")
        message["encrypted_env"] = variables.sealed_for(client, app_id, envs, given["kms_signer"])
    message["image"] = message.get("image") or _newest_image(client)
    flags = ("app_id", "hugepages", "pin_numa", "no_tee", "simulated_tee")
    message |= {key: given[key] for key in flags} | {"name": name, "stopped": stopped}
    made = client.call("prpc/CreateVm", compose_file=text, **message)
    if as_json:
        print_json(made)
    else:
        click.echo(made["id"])
    if wait and not stopped:
        boot.watch(client, made["id"])


@click.command()
@click.argument("vm_id", metavar="VM", shell_complete=vms)
@settings
@click.option("--no-tee/--tee", default=None, help="Without a TEE, or in one again.")
@click.option("--json", "as_json", is_flag=True, help="JSON instead of the new app id.")
def update(vm_id: str, no_tee: bool | None, as_json: bool, **given: Any) -> None:
    """Change a VM in one call: all of it or nothing.

    CPU, memory, disk and image change only while it is stopped; the rest takes effect at its next start.
    Lists are replaced as a whole: `none` empties --port, --gpu, --kms-url and --gateway-url, and `--net
    default` gives the VM the node's own network.
    """
    from cli.client import Client

    has_envs = bool(given["given"]) or given["env_file"] is not None
    envs = variables.read(given["given"], given["env_file"])
    client = Client.found()
    info = client.info(client.vm(vm_id)["id"])
    before = info["configuration"]["compose_file"]
    text = compose.text_of(given, info["name"], before, envs if has_envs else None)
    change = _common(given) | _flags(given)
    if no_tee is not None:
        change["no_tee"] = no_tee
    if text is not None:
        change["compose_file"] = text
    if has_envs:
        change["encrypted_env"] = variables.sealed_for(
            client, info["app_id"], envs, given["kms_signer"]
        )
    if not change:
        raise click.UsageError("nothing to change was given")
    answer = client.call("prpc/UpdateVm", id=info["id"], **change)
    if as_json:
        print_json({"id": info["id"], "app_id": answer["id"]})
    compose.say_hash_change(before, text or before)


def _common(given: dict[str, Any]) -> dict[str, Any]:
    """What both messages call by the same names; only what was given."""
    message: dict[str, Any] = {
        "vcpu": given["vcpu"],
        "memory": given["memory"],
        "disk_size": given["disk"],
        "image": given["image"],
        "user_config": given["user_config"].read_text() if given["user_config"] else None,
        "ports": [parse(each) for each in _listed(given["ports"])],
        "networks": [_network(each) for each in given["nets"] if each != "default"],
        "kms_urls": _listed(given["kms_urls"]),
        "gateway_urls": _listed(given["gateway_urls"]),
        "gpus": _gpus(_listed(given["gpus"])) if given["gpus"] else None,
    }
    return {key: value for key, value in message.items() if value not in (None, [])}


def _flags(given: dict[str, Any]) -> dict[str, bool]:
    """UpdateVm's word that a list is replaced, maybe by an empty one."""
    lists = {
        "update_ports": given["ports"],
        "update_networking": given["nets"],
        "update_kms_urls": given["kms_urls"],
        "update_gateway_urls": given["gateway_urls"],
    }
    return {flag: True for flag, values in lists.items() if values}


def _listed(values: tuple[str, ...]) -> list[str]:
    return [] if values == (NONE,) else list(values)


def _network(text: str) -> dict[str, Any]:
    mode, _, bridge = text.partition(":")
    if bridge and mode != "bridge":
        raise Invalid.field("net", f"{text}: only bridge takes a name")
    return {"mode": mode, "bridge_name": bridge or None}


def _gpus(slots: list[str]) -> dict[str, Any]:
    if slots == ["all"]:
        return {"attach_mode": "all", "gpus": []}
    return {"attach_mode": "listed", "gpus": [{"slot": slot} for slot in slots]}


def _newest_image(client: Client) -> str:
    known = [each for each in client.call("prpc/ListImages")["images"] if not each["is_dev"]]
    if not known:
        raise NotFound("the host has no image; build one: casemate image build")
    newest = max(known, key=lambda each: [int(part) for part in each["version"].split(".")[:3]])
    return str(newest["name"])
