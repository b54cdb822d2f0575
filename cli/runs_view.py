"""How the commands of runs show things: tables as wide as the terminal, times of here, one line while something happens."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any

import click

from cli.terminal import plain, print_table

Row = tuple[str, ...]
RUNS: Row = ("NAME", "BACKEND", "RESOURCES", "PRICE", "STATUS", "SUBMITTED")
FLEETS: Row = ("FLEET", "INSTANCE", "BACKEND", "RESOURCES", "PRICE", "STATUS", "CREATED")
OFFERS: Row = ("#", "BACKEND", "RESOURCES", "INSTANCE TYPE", "PRICE", "")
LEAST_WIDTH = 40


def table(head: Row, rows: Sequence[Row]) -> None:
    """A table; on a terminal no line is longer than it is wide."""
    if sys.stdout.isatty() and rows:
        rows = _fitted(head, [tuple(map(plain, row)) for row in rows])
    print_table(head, rows)


def _fitted(head: Row, rows: Sequence[Row]) -> list[Row]:
    """The rows with their widest column cut until a line fits the terminal."""
    width = max(LEAST_WIDTH, shutil.get_terminal_size().columns)
    widths = [max(len(line[i]) for line in [head, *rows]) for i in range(len(head))]
    while sum(widths) + 2 * (len(widths) - 1) > width and max(widths) > 8:
        widths[widths.index(max(widths))] -= 1
    return [
        tuple(cell if len(cell) <= size else cell[: size - 1] + "…" for cell, size in zip(row, widths, strict=True))
        for row in rows
    ]  # fmt: skip


def ago(text: str | None) -> str:
    """A server's time as people say it: how long ago, or the day."""
    if not text:
        return ""
    moment = datetime.fromisoformat(text).timestamp()
    seconds = max(0, int(time.time() - moment))
    for size, unit in ((86_400, "day"), (3600, "hour"), (60, "min")):
        if seconds >= size:
            count = seconds // size
            return f"{count} {unit}{'s' if count > 1 else ''} ago"
    return f"{seconds} sec ago" if seconds else "now"


def here(text: str) -> str:
    """A server's time in the time zone of this machine."""
    return datetime.fromisoformat(text).astimezone().strftime("%Y-%m-%d %H:%M:%S")


def resources(of: Any) -> str:
    """The resources of an offer or an instance."""
    parts = [f"cpu={of['cpus']}", f"mem={of['memory_mib'] / 1024:g}GB"]
    parts += [f"disk={of['disk']['size_mib'] / 1024:g}GB"] if of.get("disk") else []
    names = [gpu["name"] for gpu in of.get("gpus") or []]
    return " ".join(parts + ([f"gpu={','.join(names)}"] if names else []))


def price(value: float | None) -> str:
    """A price of an hour."""
    return "" if value is None else f"${value:g}"


def backend(name: str, region: str | None) -> str:
    """Where something runs; `remote` is shown as ssh, as dstack does."""
    shown = "ssh" if name == "remote" else name
    return f"{shown} ({region})" if region else shown


def status(run: Any) -> str:
    """What to say of a run: of one that ended, how its job did."""
    submission = run.get("latest_job_submission")
    if run["status"] in ("done", "failed", "terminated") and submission:
        return str(submission.get("status_message") or run["status"])
    return str(run.get("status_message") or run["status"])


def run_rows(runs: Iterable[Any], *, verbose: bool = False) -> list[Row]:
    """The rows of a table of runs; with `verbose` also each job's reason of its end."""
    rows: list[Row] = []
    for run in runs:
        submission = run.get("latest_job_submission") or {}
        provisioning = submission.get("job_provisioning_data")
        where, what, cost = "", "", ""
        if provisioning:
            where = backend(provisioning["backend"], provisioning["region"])
            what = resources(provisioning["instance_type"]["resources"])
            cost = price(provisioning["price"])
        said = status(run)
        if verbose and submission.get("termination_reason_message"):
            said += f": {submission['termination_reason_message']}"
        rows.append((run["run_spec"]["run_name"], where, what, cost, said, ago(run["submitted_at"])))
    return rows


def fleet_rows(fleets: Iterable[Any]) -> list[Row]:
    """The rows of a table of fleets, each with its instances below."""
    rows: list[Row] = []
    for fleet in fleets:
        rows.append((fleet["name"], "", "", "", "", fleet["status"], ago(fleet["created_at"])))
        for each in fleet["instances"]:
            kind = each.get("instance_type")
            where = backend(each["backend"], each.get("region")) if each.get("backend") else ""
            what = resources(kind["resources"]) if kind else ""
            cells = (where, what, price(each.get("price")), each["status"], ago(each["created"]))
            rows.append(("", str(each["instance_num"]), *cells))
    return rows


def offer_rows(offers: Iterable[Any]) -> list[Row]:
    """The rows of a numbered table of offers."""
    return [
        (
            str(number),
            backend(offer["backend"], offer["region"]),
            resources(offer["instance"]["resources"]),
            offer["instance"]["name"],
            price(offer["price"]),
            offer["availability"] if offer["availability"] in ("idle", "busy", "not_available") else "",
        )
        for number, offer in enumerate(offers, 1)
    ]  # fmt: skip


def duration(value: Any) -> str:
    """Seconds as people write them; off for none."""
    if value in (None, "off", -1, False):
        return "off"
    seconds = int(value)
    for size, unit in ((86_400, "d"), (3600, "h"), (60, "m")):
        if seconds >= size and seconds % size == 0:
            return f"{seconds // size}{unit}"
    return f"{seconds}s"


class Live:
    """One line on standard error that changes while something is waited for; each change a line where it is no terminal."""

    def __init__(self) -> None:
        self._last = ""
        self._is_terminal = sys.stderr.isatty()

    def show(self, text: str) -> None:
        """Shows another text."""
        text = plain(text)
        if text == self._last:
            return
        self._last = text
        click.echo(f"\r\x1b[K{text}" if self._is_terminal else text, err=True, nl=not self._is_terminal)

    def end(self) -> None:
        """Takes the line away."""
        if self._last and self._is_terminal:
            click.echo("\r\x1b[K", err=True, nl=False)
        self._last = ""


def confirm(question: str) -> bool:
    """Asks on the terminal, or reads one line of what is piped in; Abort without either."""
    return click.confirm(question, prompt_suffix=" [y/n]: ", show_default=False)
