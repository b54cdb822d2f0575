"""`casemate offer`: the sizes that a run could have."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click

from cli.run import AS_JSON, PROJECT
from cli.runs_client import Api
from cli.terminal import plain, print_json, say

# `image: scratch` asks no registry; the minima are none, for servers have some of their own.
ANY_TASK = {"type": "task", "commands": [":"], "image": "scratch", "user": "root"}
ANY_SIZE = {"cpu": "1..", "memory": "0..", "gpu": "0..", "disk": None}


@click.command()
@click.option("--cpu", help="Number of processors: 4, 4.. or 2..8.")
@click.option("--memory", help="Memory: 8GB, 8GB.. or 4GB..16GB.")
@click.option("--disk", help="Disk: 100GB...")
@click.option("--gpu", help="A GPU, as in a configuration: H100, 24GB, A100:2; 0 for none.")
@click.option("--max-price", type=float, help="The most that an hour may cost.")
@click.option("--fleet", "fleets", multiple=True, help="Only what this fleet offers; repeatable.")
@click.option(
    "--max-offers", type=click.IntRange(1, 10_000), default=50, show_default=True,
    help="Number of offers to show.",
)  # fmt: skip
@click.option(
    "--group-by", help="GPUs instead of offers, by these: gpu[,backend[,region]][,count]."
)
@AS_JSON
@PROJECT
def offer(
    fleets: Sequence[str], max_price: float | None, max_offers: int, group_by: str | None,
    as_json: bool, project: str, **sizes: str | None,
) -> None:  # fmt: skip
    """List the sizes that runs can have; nothing is made."""
    resources = ANY_SIZE | {name: value for name, value in sizes.items() if value is not None}
    wanted = ANY_TASK | {"resources": resources, "max_price": max_price}
    spec = {"configuration": wanted | ({"fleets": list(fleets)} if fleets else {})}
    api = Api.of(project)
    if group_by:
        fields = [each for each in group_by.split(",") if each != "gpu"]
        _show_gpus(api.call("gpus/list", run_spec=spec, group_by=fields), as_json=as_json)
        return
    plan = api.plan(spec, max_offers, for_offers_only=True)
    if as_json:
        _print(plan)
    else:
        _show(plan["job_plans"][0])


def _show(job: Any) -> None:
    from cli import runs_view

    if not job["offers"]:
        say("no offers: nothing here is that large, that cheap, or in these fleets")
        return
    runs_view.table(runs_view.OFFERS, runs_view.offer_rows(job["offers"]))
    if job["total_offers"] > len(job["offers"]):
        click.echo(f"... {len(job['offers'])} of {job['total_offers']} offers")


def _print(plan: Any) -> None:
    job = plan["job_plans"][0]
    needs = job["job_spec"]["requirements"]
    shown = {key: needs.get(key) for key in ("resources", "max_price", "spot", "reservation")}
    about = {"project": plan["project_name"], "user": plan["user"], "requirements": shown}
    print_json(about | {"offers": job["offers"], "total_offers": job["total_offers"]})


def _show_gpus(found: Any, *, as_json: bool) -> None:
    if as_json:
        print_json(found)
        return
    if not found["gpus"]:
        say("no GPUs")
    for gpu in found["gpus"]:
        click.echo(plain(f"{gpu['name']}  {gpu['memory_mib'] / 1024:g}GB"))
