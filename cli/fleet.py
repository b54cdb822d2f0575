"""`casemate fleet`: the pools of VMs that runs take theirs from; and `casemate apply` of one."""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click

from cli.run import AS_JSON, PROJECT, WATCH_S, YES
from cli.runs_client import LOOK_S, Api
from cli.terminal import plain, print_json, say
from core.errors import Invalid

OFFERS_SHOWN = 3
TO_COME = ("pending", "provisioning")
WATCH = click.option("-w", "--watch", is_flag=True, help="Again every second, until Ctrl+C.")
VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Also whole times, and reasons.")


@click.group(invoke_without_command=True)
@WATCH
@VERBOSE
@AS_JSON
@PROJECT
@click.pass_context
def fleet(
    context: click.Context, watch: bool, verbose: bool, as_json: bool, project: str
) -> None:  # fmt: skip
    """Fleets: pools of VMs for runs; alone it lists them."""
    if context.invoked_subcommand is None:
        _list(Api.of(project), watch=watch, verbose=verbose, as_json=as_json)


@fleet.command("list")
@WATCH
@VERBOSE
@AS_JSON
@PROJECT
def list_fleets(watch: bool, verbose: bool, as_json: bool, project: str) -> None:
    """List the fleets of a project and their instances."""
    _list(Api.of(project), watch=watch, verbose=verbose, as_json=as_json)


def _list(api: Api, *, watch: bool, verbose: bool, as_json: bool) -> None:
    from cli import runs_view

    if watch and as_json:
        raise Invalid("--json is one document: it does not go with --watch")
    while True:
        found = api.call("fleets/list", include_imported=True)
        if as_json:
            print_json({"project": api.entry.name, "fleets": found})
            return
        if watch and sys.stdout.isatty():
            click.clear()
        runs_view.table(runs_view.FLEETS, runs_view.fleet_rows(found, verbose=verbose))
        if not watch:
            return
        time.sleep(WATCH_S)


@fleet.command()
@click.argument("name", default="")
@click.option("--id", "fleet_id", help="The fleet's id instead of its name.")
@AS_JSON
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
        runs_view.table(runs_view.FLEETS, runs_view.fleet_rows([found], verbose=True))


@fleet.command()
@click.argument("name")
@click.option(
    "-i", "--instance", "numbers", type=int, multiple=True,
    help="Only the instance of this number; repeatable.",
)  # fmt: skip
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
    say(f"Deleted {what}.")


# Applying one ------------------------------------------------------------------------------------


def apply_fleet(
    api: Api, wanted: Mapping[str, Any], path: Path, *, yes: bool, detach: bool, force: bool
) -> int:
    """Makes or changes the fleet that a file describes, after a look at the plan; the exit code."""
    from cli import runs_view

    spec = {"configuration": wanted, "configuration_path": str(path), "profile": {}}
    plan = api.call("fleets/get_plan", spec=spec)
    _show_plan(plan)
    question, is_anew = _question(plan, force=force)
    if not question:
        return 0
    if not yes and not runs_view.confirm(question):
        say("Nothing was done.")
        return 0
    current = plan["current_resource"]
    if is_anew:
        api.delete_fleet(current["name"])
        current = None
    made = api.call("fleets/apply", plan={"spec": spec, "current_resource": current}, force=force)
    if not detach:
        made = _wait(api, made)
    runs_view.table(runs_view.FLEETS, runs_view.fleet_rows([made], verbose=not detach))
    return 1 if made["status"] == "failed" else 0


def _show_plan(plan: Any) -> None:
    from cli import runs_view
    from cli.plan import needed

    wanted = (plan.get("effective_spec") or plan["spec"])["configuration"]
    facts = {"Project": plan["project_name"], "User": plan["user"], "Type": "fleet"}
    if wanted.get("nodes"):
        facts["Nodes"] = "{min}..{max}".format(**{"max": None, **wanted["nodes"]})
    if wanted.get("resources"):
        facts["Resources"] = needed(wanted["resources"])
    facts["Spot policy"] = str(wanted.get("spot_policy") or "on-demand")
    facts["Idle duration"] = runs_view.duration(wanted.get("idle_duration") or 3 * 86_400)
    for name, value in facts.items():
        click.echo(plain(f" {name:<14} {value.replace('None', '')}"))
    click.echo()
    if plan["offers"]:
        shown = plan["offers"][:OFFERS_SHOWN]
        runs_view.table(runs_view.OFFERS, runs_view.offer_rows(shown))
        if plan["total_offers"] > len(shown):
            click.echo(f"... {len(shown)} of {plan['total_offers']} offers")
        click.echo()


def _question(plan: Any, *, force: bool) -> tuple[str, bool]:
    """What to ask, nothing where there is nothing to do; and whether the fleet has to be made anew."""
    from cli.plan import differences

    current, wanted = plan["current_resource"], plan.get("effective_spec") or plan["spec"]
    name = wanted["configuration"].get("name")
    if current is None:
        return (f"Make the fleet {name}?" if name else "Make a new fleet?"), False
    changed = differences(current["spec"]["configuration"], wanted["configuration"])
    if not changed and not force:
        say(f"Fleet {name} already exists. Detected no changes.")
        return "", False
    for line in changed:
        say(f"  {line}")
    if changed and plan.get("action") == "update":
        return f"Update the fleet {name} in place?", False
    return f"Delete the fleet {name} and make it anew?", True


def _wait(api: Api, fleet: Any) -> Any:
    """The fleet once its least instances are there; until then their number is shown."""
    from cli.runs_view import Live

    least = (fleet["spec"]["configuration"].get("nodes") or {}).get("min") or 0
    with Live() as live:
        while True:
            statuses = [each["status"] for each in fleet["instances"]]
            there = sum(each not in TO_COME for each in statuses)
            if fleet["status"] == "failed":
                return fleet
            if fleet["status"] != "submitted" and there == len(statuses) and there >= least:
                return fleet
            live.show(f"{fleet['name']}: {there} of {max(least, len(statuses))} instances")
            time.sleep(LOOK_S)
            fleet = api.look("fleets/get", id=fleet["id"])
