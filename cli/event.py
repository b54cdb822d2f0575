"""`casemate event`: what happened to runs, jobs, fleets and instances, and who did it."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from typing import Any
from urllib.parse import quote

import click

from cli.run import AS_JSON, PROJECT, SINCE, WATCH_S, moment
from cli.runs_client import Api
from cli.terminal import plain, print_json
from core.errors import Invalid

PAGE = 100
# How a thing is asked for by its name, which the filters do not know.
ASKED = {"fleets": ("fleets/get", "name"), "runs": ("runs/get", "run_name")}


@click.command()
@SINCE
@click.option("-w", "--watch", is_flag=True, help="Go on with what comes, until Ctrl+C.")
@click.option("--target-run", multiple=True, help="About this run itself; repeatable.")
@click.option("--target-fleet", multiple=True, help="About this fleet itself; repeatable.")
@click.option("--within-run", multiple=True, help="About this run and its jobs; repeatable.")
@click.option(
    "--within-fleet", multiple=True, help="About this fleet and its instances; repeatable."
)
@click.option(
    "--include-target-type", "types", multiple=True, help="About a kind of thing: run, job, ..."
)
@AS_JSON
@PROJECT
def event(
    since: str | None, watch: bool, types: Sequence[str], as_json: bool, project: str,
    **names: Sequence[str],
) -> None:  # fmt: skip
    """Show what happened in a project, the oldest first; without --since the last 100 events."""
    if watch and as_json:
        raise Invalid("--json is one document: it does not go with --watch")
    api = Api.of(project)
    filters = _filters(api, names) | ({"include_target_types": list(types)} if types else {})
    if since:
        found = list(_after(api, filters, {"prev_recorded_at": moment(since)}))
    else:
        found = api.call("/api/events/list", **filters, limit=PAGE, ascending=False)[::-1]
    if as_json:
        print_json(found)
        return
    _show(found)
    while watch:
        time.sleep(WATCH_S)
        news = list(_after(api, filters, _behind(found)))
        _show(news)
        found = news or found


def _filters(api: Api, names: dict[str, Sequence[str]]) -> dict[str, Any]:
    """What the service is asked for: ids, where the command line has names."""
    filters = {}
    for option, given in names.items():
        if given:
            path, key = ASKED[option.split("_")[1] + "s"]
            filters[f"{option}s"] = [api.call(path, **{key: each})["id"] for each in given]
    for side in ("target", "within"):
        if sum(name.startswith(side) for name in filters) > 1:
            raise Invalid(f"--{side}-run and --{side}-fleet do not go together")
    if not filters:
        found = api.call(f"/api/projects/{quote(api.entry.name)}/get")
        filters["within_projects"] = [found["project_id"]]
    return filters


def _after(api: Api, filters: dict[str, Any], place: dict[str, Any]) -> Iterator[Any]:
    """The events behind a place in the list, page by page."""
    while True:
        page = api.look("/api/events/list", **filters, **place, limit=PAGE, ascending=True)
        yield from page
        if len(page) < PAGE:
            return
        place = _behind(page)


def _behind(events: Sequence[Any]) -> dict[str, Any]:
    # A list without any: everything is behind its end.
    if not events:
        return {"prev_recorded_at": "1970-01-02T00:00:00Z"}
    return {"prev_recorded_at": events[-1]["recorded_at"], "prev_id": events[-1]["id"]}


def _show(events: Sequence[Any]) -> None:
    from cli.runs_view import here

    for each in events:
        about = ", ".join(f"{target['type']} {target['name']}" for target in each["targets"])
        who = each["actor_user"] or "system"
        click.echo(plain(f"[{here(each['recorded_at'])}] [{who}] [{about}] {each['message']}"))
