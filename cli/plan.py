"""What `casemate apply` shows before it asks: the plan of a run, and what of it differs from the one that is there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import click

from cli import runs_view
from cli.terminal import plain

WIDTH = 60


def show(plan: Any) -> None:
    """The table of a run's plan, and its offers."""
    job = plan["job_plans"][0]
    for name, value in _facts(plan, job["job_spec"]).items():
        click.echo(f" {name:<14} {plain(value)}".rstrip())
    click.echo()
    if job["offers"]:
        runs_view.table(runs_view.OFFERS, runs_view.offer_rows(job["offers"]))
        if job["total_offers"] > len(job["offers"]):
            click.echo(f"... {len(job['offers'])} of {job['total_offers']} offers")
        click.echo()


def _facts(plan: Any, spec: Any) -> dict[str, str]:
    needs = spec["requirements"]
    wanted = (plan.get("effective_run_spec") or plan["run_spec"])["configuration"]
    policies = {None: "auto", True: "spot", False: "on-demand"}
    return {
        "Project": plan["project_name"],
        "User": plan["user"],
        "Type": wanted["type"],
        "Resources": needed(needs["resources"]),
        "Spot policy": policies[needs.get("spot")],
        "Max price": runs_view.price(needs.get("max_price")) or "off",
        "Retry policy": "on" if spec.get("retry") else "off",
        "Idle duration": runs_view.duration(_or(wanted.get("idle_duration"), 300)),
        "Max duration": runs_view.duration(spec.get("max_duration")),
    }


def _or(value: Any, default: Any) -> Any:
    return default if value is None else value


def needed(resources: Any) -> str:
    """Required resources as people write them."""
    cpu, disk, gpu = resources["cpu"], resources.get("disk"), resources.get("gpu")
    parts = [f"cpu={_span(cpu.get('count') if isinstance(cpu, Mapping) else cpu)}"]
    parts.append(f"mem={_span(resources['memory'], 'GB')}")
    parts += [f"disk={_span(disk['size'], 'GB')}"] if disk else []
    if (
        gpu
        and gpu["count"]
        and gpu["count"].get("max") != 0
        and (gpu["name"] or gpu["count"]["min"])
    ):
        parts.append(f"gpu={','.join(gpu['name'] or ['any'])}:{_span(gpu['count'])}")
    return " ".join(parts)


def _span(value: Any, unit: str = "") -> str:
    if not isinstance(value, Mapping):
        return str(value)
    least, most = value.get("min"), value.get("max")
    ends = ["" if each is None else f"{each:g}{unit}" for each in (least, most)]
    return ends[0] if least == most else "..".join(ends)


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """What of a specification differs, a line a field; of variables the names alone."""
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = dict.fromkeys([*old, *new])
        below = (differences(old.get(k), new.get(k), f"{name}.{k}" if name else k) for k in keys)
        return [line for lines in below for line in lines]
    if old == new:
        return []
    is_secret = name.startswith("configuration.env.")
    return [name if is_secret else f"{name}: {_short(old)} -> {_short(new)}"]


def _short(value: Any) -> str:
    text = "none" if value is None else str(value)
    return text if len(text) <= WIDTH else text[: WIDTH - 1] + "…"
