"""`casemate run`, `ps`, `logs` and `stop`: what was submitted, and what became of it."""

from __future__ import annotations

import re
import sys
import time
from datetime import UTC, datetime, timedelta
from typing import Any

import click

from cli.runs_client import FINISHED, Api, job_of, last_of
from cli.terminal import print_json, say
from core.errors import Invalid

PROJECT = click.option(
    "--project", default="", help="The project; DSTACK_PROJECT, or the default one."
)
AS_JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
YES = click.option("-y", "--yes", is_flag=True, help="Do not ask.")
JOB = click.option("--job", "job_num", type=int, default=0, help="The number of the job.")
REPLICA = click.option("--replica", type=int, help="The number of the replica.")
SINCE = click.option("--since", help="From then on: 10m, 2h, 1d, or a time like 2026-01-02T03:04.")
WATCH_S = 1.0
_AGO = re.compile(r"(\d{1,6})([smhdw])")
_UNITS = {"s": "seconds", "m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def moment(text: str) -> str:
    """A time that a person gave, as servers read it; Invalid for other text."""
    try:
        if match := _AGO.fullmatch(text):
            found = datetime.now(UTC) - timedelta(**{_UNITS[match[2]]: int(match[1])})
        else:
            found = datetime.fromisoformat(text).astimezone(UTC)
    except (ValueError, OverflowError):
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
@click.option(
    "-n", "--last", type=click.IntRange(1, 100), help="So many of the newest, also ended ones."
)
@click.option("-v", "--verbose", is_flag=True, help="Also why they ended.")
@click.option("-w", "--watch", is_flag=True, help="Again every second, until Ctrl+C.")
@AS_JSON
@PROJECT
def ps(
    show_all: bool, last: int | None, verbose: bool, watch: bool, as_json: bool, project: str
) -> None:
    """List the runs of a project: those that have not ended, and if there are none the newest one."""
    from cli import runs_view

    if watch and as_json:
        raise Invalid("--json is one document: it does not go with --watch")
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
@click.option(
    "-d", "--diagnose", is_flag=True, help="What its VM says of it instead of its output."
)
@SINCE
@JOB
@REPLICA
@AS_JSON
@PROJECT
def logs(
    name: str, follow: bool, diagnose: bool, since: str | None, job_num: int, replica: int | None,
    as_json: bool, project: str,
) -> None:  # fmt: skip
    """Show the output of run NAME."""
    from cli.runs_view import write

    if follow and as_json:
        raise Invalid("--json is one document: it does not go with --follow")
    api = Api.of(project)
    found, start = api.run(name), since and moment(since)
    submission = last_of(job_of(found, job_num, replica))["id"]
    if as_json:
        print_json(list(api.entries(found, submission, start, diagnose)))
        return
    read = api.followed if follow else api.output
    write(read(found, submission, since=start, diagnose=diagnose))


@click.command()
@click.argument("name")
@click.option("-x", "--abort", is_flag=True, help="At once, without a word to its processes.")
@click.option("-w", "--wait", "waits", is_flag=True, help="Return when it has ended.")
@YES
@PROJECT
def stop(name: str, abort: bool, waits: bool, yes: bool, project: str) -> None:
    """End run NAME."""
    from cli.runs_view import confirm

    api = Api.of(project)
    found = api.run(name)
    if found["status"] in FINISHED:
        say(f"{name} is over already")
        return
    if not yes and not confirm(f"Stop the run {name}?"):
        raise click.Abort
    api.call("runs/stop", runs_names=[name], abort=abort)
    if waits:
        see_end(api, found)
    say("Aborted" if abort else "Stopped")


def see_end(api: Api, run: Any) -> Any:
    """The run once it has ended; until then its state is shown."""
    from cli.runs_view import Live

    with Live() as live:
        return api.wait(run["id"], lambda run: run["status"] in FINISHED, live.follow)
