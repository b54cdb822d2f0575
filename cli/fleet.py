"""`casemate fleet`: the pools of VMs that runs take theirs from."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence

import click

from cli.run import AS_JSON, PROJECT, WATCH_S, YES
from cli.runs_client import Api
from cli.terminal import print_json, say
from core.errors import Invalid


@click.group(invoke_without_command=True)
@PROJECT
@click.pass_context
def fleet(context: click.Context, project: str) -> None:
    """Fleets: pools of VMs for runs; alone it lists them."""
    if context.invoked_subcommand is None:
        _show(Api.of(project), as_json=False)


@fleet.command("list")
@click.option("-w", "--watch", is_flag=True, help="Again every second, until Ctrl+C.")
@AS_JSON
@PROJECT
def list_fleets(watch: bool, as_json: bool, project: str) -> None:
    """List the fleets of a project and their instances."""
    api = Api.of(project)
    while True:
        if watch and sys.stdout.isatty():
            click.clear()
        _show(api, as_json=as_json)
        if not watch:
            return
        time.sleep(WATCH_S)


def _show(api: Api, *, as_json: bool) -> None:
    from cli import runs_view

    found = api.call("fleets/list", include_imported=True)
    if as_json:
        print_json({"project": api.entry.name, "fleets": found})
    else:
        runs_view.table(runs_view.FLEETS, runs_view.fleet_rows(found))


@fleet.command()
@click.argument("name", default="")
@click.option("--id", "fleet_id", help="The fleet's id instead of its name.")
@click.option("--json", "as_json", is_flag=True, help="The whole fleet instead of its table.")
@PROJECT
def get(name: str, fleet_id: str | None, as_json: bool, project: str) -> None:
    """Show fleet NAME."""
    from cli import runs_view

    if bool(name) == bool(fleet_id):
        raise Invalid("give the name of a fleet, or --id")
    asked = {"id": fleet_id} if fleet_id else {"name": name}
    found = Api.of(project).call("fleets/get", **asked)
    if as_json:
        print_json(found)
    else:
        runs_view.table(runs_view.FLEETS, runs_view.fleet_rows([found]))


@fleet.command()
@click.argument("name")
@click.option("-i", "--instance", "numbers", type=int, multiple=True, help="Only this instance of it.")
@YES
@PROJECT
def delete(name: str, numbers: Sequence[int], yes: bool, project: str) -> None:
    """Delete fleet NAME and its VMs, or single instances of it."""
    from cli.runs_view import confirm

    api = Api.of(project)
    api.call("fleets/get", name=name)
    what = f"instances {', '.join(map(str, numbers))} of {name}" if numbers else f"the fleet {name}"
    if not yes and not confirm(f"Delete {what}?"):
        raise click.Abort
    if numbers:
        api.call("fleets/delete_instances", name=name, instance_nums=list(numbers))
    else:
        api.call("fleets/delete", names=[name])
    say(f"{what} deleted")
