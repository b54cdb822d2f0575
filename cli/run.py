"""`casemate run`, `ps`, `logs`, `stop`, `delete` and `event`: what was submitted, and what became of it."""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import click

from cli.runs_client import FINISHED, Api, last_submission
from cli.terminal import print_json, say
from core.errors import Invalid

PROJECT = click.option("--project", default="", help="The project; DSTACK_PROJECT, or the default one.")
AS_JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
YES = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
JOB = click.option("--job", "job_num", type=int, default=0, help="The number of the job.")
REPLICA = click.option("--replica", type=int, help="The number of the replica.")
SINCE = click.option("--since", help="From then on: 10m, 2h, 1d, or a time like 2026-01-02T03:04.")
WATCH_S = 1.0
_AGO = re.compile(r"(\d{1,6})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}
# What `event` may be about: the option's name, the filter's, and where the id of a name is found.
ABOUT = {
    "fleet": "fleets/get",
    "run": "runs/get",
}


def moment(text: str) -> str:
    """A time that a person gave, as servers read it; Invalid for other text."""
    if match := _AGO.fullmatch(text):
        found = datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: int(match[1])})
    else:
        try:
            found = datetime.fromisoformat(text).astimezone(UTC)
        except ValueError:
            raise Invalid.field("--since", "must look like 10m, 2h, 1d or 2026-01-02T03:04") from None
    return found.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


@click.group()
def run() -> None:
    """What was submitted."""


@run.command()
@click.argument("name", default="")
@click.option("--id", "run_id", help="The run's id instead of its name; finds deleted ones too.")
@click.option("--json", "as_json", is_flag=True, help="The whole run instead of a line.")
@PROJECT
def get(name: str, run_id: str | None, as_json: bool, project: str) -> None:
    """Show run NAME."""
    from cli import runs_view

    if bool(name) == bool(run_id):
        raise Invalid("give the name of a run, or --id")
    found = Api.of(project).run(name, run_id)
    if as_json:
        print_json(found)
    else:
        runs_view.table(runs_view.RUNS, runs_view.run_rows([found], verbose=True))


@click.command()
@click.option("-a", "--all", "show_all", is_flag=True, help="Also those that have ended.")
@click.option("-n", "--last", type=click.IntRange(1), help="So many of the newest, also ended ones.")
@click.option("-v", "--verbose", is_flag=True, help="Also why they ended.")
@click.option("-w", "--watch", is_flag=True, help="Again every second, until Ctrl+C.")
@AS_JSON
@PROJECT
def ps(
    show_all: bool, last: int | None, verbose: bool, watch: bool, as_json: bool, project: str
) -> None:
    """List the runs of a project: those that have not ended, and if there are none the newest one."""
    import time

    from cli import runs_view

    api = Api.of(project)
    while True:
        found = _listed(api, only_active=not (show_all or last), limit=last or 100)
        if as_json:
            print_json({"project": api.entry.name, "runs": found})
        else:
            if watch and sys.stdout.isatty():
                click.clear()
            runs_view.table(runs_view.RUNS, runs_view.run_rows(found, verbose=verbose))
        if not watch:
            return
        time.sleep(WATCH_S)


def _listed(api: Api, *, only_active: bool, limit: int) -> list[Any]:
    asked = {"project_name": api.entry.name, "job_submissions_limit": 1, "include_jobs": True}
    found: list[Any] = api.call("/api/runs/list", **asked, only_active=only_active, limit=limit)
    if not found and only_active:
        found = api.call("/api/runs/list", **asked, only_active=False, limit=1)
    return found


@click.command()
@click.argument("name")
@click.option("-f", "--follow", is_flag=True, help="Go on until the run has ended.")
@click.option("-d", "--diagnose", is_flag=True, help="What its VM says of it instead of its output.")
@SINCE
@JOB
@REPLICA
@PROJECT
def logs(
    name: str,
    follow: bool,
    diagnose: bool,
    since: str | None,
    job_num: int,
    replica: int | None,
    project: str,
) -> None:
    """Show the output of run NAME."""
    api = Api.of(project)
    submission = last_submission(api.run(name), job_num, replica)["id"]
    given = {"since": since and moment(since), "follow": follow, "diagnose": diagnose}
    for piece in api.output(name, submission, **given):  # type: ignore[arg-type]
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()


@click.command()
@click.argument("name")
@click.option("-x", "--abort", is_flag=True, help="At once, without a word to its processes.")
@click.option("-w", "--wait", "waits", is_flag=True, help="Return when it has ended.")
@YES
@PROJECT
def stop(name: str, abort: bool, waits: bool, yes: bool, project: str) -> None:
    """End run NAME."""
    from cli.runs_view import Live, confirm, status

    api = Api.of(project)
    api.run(name)
    if not yes and not confirm(f"Stop the run {name}?"):
        raise click.Abort
    api.call("runs/stop", runs_names=[name], abort=abort)
    if waits:
        live = Live()
        api.wait(
            name, lambda run: run["status"] in FINISHED, lambda run: live.show(f"{name}: {status(run)}")
        )
        live.end()
    say("Stopped" if not abort else "Aborted")


@click.command()
@click.option(
    "-f",
    "--file",
    "path",
    type=click.Path(path_type=Path, dir_okay=False),
    default=Path(".dstack.yml"),
    show_default=True,
    help="The configuration of what is to be deleted.",
)
@YES
@PROJECT
def delete(path: Path, yes: bool, project: str) -> None:
    """Delete the run or the fleet that a file describes; a run must have ended."""
    from cli.apply import read_configuration
    from cli.runs_view import confirm

    configuration = read_configuration(path)
    name, api = configuration.get("name"), Api.of(project)
    if not name:
        raise Invalid.field("name", f"{path} names nothing that could be deleted")
    is_fleet = configuration["type"] == "fleet"
    api.call("fleets/get", name=name) if is_fleet else api.run(name)
    if not yes and not confirm(f"Delete the {'fleet' if is_fleet else 'run'} {name}?"):
        raise click.Abort
    if is_fleet:
        api.call("fleets/delete", names=[name])
    else:
        api.call("runs/delete", runs_names=[name])
    say(f"{name} deleted")


@click.command()
@SINCE
@click.option("--target-run", multiple=True, help="About this run itself.")
@click.option("--target-fleet", multiple=True, help="About this fleet itself.")
@click.option("--within-run", multiple=True, help="About this run and its jobs.")
@click.option("--within-fleet", multiple=True, help="About this fleet and its instances.")
@click.option("--include-target-type", "types", multiple=True, help="About this kind of thing: run, job, ...")
@click.option("-n", "--limit", type=click.IntRange(1, 100), default=100, show_default=True)
@AS_JSON
@PROJECT
def event(
    since: str | None, types: Sequence[str], limit: int, as_json: bool, project: str, **filters: Any
) -> None:
    """Show what happened in a project, the oldest first."""
    from cli.runs_view import here

    api = Api.of(project)
    asked: dict[str, Any] = {"limit": limit, "ascending": False}
    asked |= {"include_target_types": list(types)} if types else {}
    for name, given in filters.items():
        side, kind = name.split("_")
        if given:
            key = "name" if kind == "fleet" else "run_name"
            asked[f"{side}_{kind}s"] = [api.call(ABOUT[kind], **{key: each})["id"] for each in given]
    if not any(name.startswith(("target_", "within_")) for name in asked):
        asked["within_projects"] = [api.call(f"/api/projects/{api.entry.name}/get")["project_id"]]
    found = api.call("/api/events/list", **asked)
    start = since and moment(since)
    found = [each for each in reversed(found) if not start or each["recorded_at"] >= start]
    if as_json:
        print_json(found)
        return
    for each in found:
        who = each["actor_user"] or "system"
        about = ", ".join(f"{target['type']} {target['name']}" for target in each["targets"])
        click.echo(f"[{here(each['recorded_at'])}] [{who}] [{about}] {each['message']}")
