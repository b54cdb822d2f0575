"""How the commands of runs show things: tables as wide as the terminal, times of here, one line while something happens."""

from __future__ import annotations

import codecs
import os
import shutil
import sys
import time
from collections.abc import Iterable, Sequence
from datetime import datetime
from typing import Any, Self

import click

from cli.runs_client import FINISHED, decisive, last_of
from cli.terminal import plain, print_table, shown
from core.errors import Invalid

Row = tuple[str, ...]
RUNS: Row = ("NAME", "BACKEND", "RESOURCES", "PRICE", "STATUS", "SUBMITTED")
FLEETS: Row = ("FLEET", "INSTANCE", "BACKEND", "RESOURCES", "PRICE", "STATUS", "CREATED")
OFFERS: Row = ("#", "BACKEND", "RESOURCES", "INSTANCE TYPE", "PRICE", "")


def table(head: Row, rows: Sequence[Row]) -> None:
    """A table; on a terminal no line is longer than it is wide."""
    if sys.stdout.isatty():
        head, *rows = _fitted([head, *(tuple(map(plain, row)) for row in rows)])
    print_table(head, rows)


def _fitted(lines: Sequence[Row]) -> list[Row]:
    """The lines with their widest columns cut until they fit the terminal."""
    gaps = 2 * (len(lines[0]) - 1)
    room = max(shutil.get_terminal_size().columns - gaps, 4 * len(lines[0]))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    while sum(widths) > room:
        widths[widths.index(max(widths))] -= 1
    return [tuple(map(_cut, line, widths)) for line in lines]


def _cut(cell: str, width: int) -> str:
    return cell if len(cell) <= width else cell[: width - 1] + "…"


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
    """What to say of a run: of one that ended, how its job did, or of several the first that failed."""
    if run["status"] in FINISHED and run["jobs"]:
        return str(last_of(decisive(run)).get("status_message") or run["status"])
    return str(run.get("status_message") or run["status"])


def run_rows(runs: Iterable[Any], *, verbose: bool = False) -> list[Row]:
    """The rows of a table of runs, those of several jobs each with its jobs below.

    With `verbose` times are whole, and each end has its reason.
    """
    rows: list[Row] = []
    for run in runs:
        last = run.get("latest_job_submission") or {}
        rows.append(_row(run["run_spec"]["run_name"], run, last, status(run), verbose=verbose))
        jobs = run["jobs"] if len(run["jobs"]) > 1 else []
        for job in jobs:
            spec, last = job["job_spec"], job["job_submissions"][-1]
            name = f"  replica={spec['replica_num']} job={spec['job_num']}"
            said = str(last.get("status_message") or last["status"])
            rows.append(_row(name, last, last, said, verbose=verbose))
    return rows


def _row(name: str, of: Any, submission: Any, said: str, *, verbose: bool) -> Row:
    where, what, cost = "", "", ""
    if data := submission.get("job_provisioning_data"):
        where = backend(data["backend"], data["region"])
        what, cost = resources(data["instance_type"]["resources"]), price(data["price"])
    reason = submission.get("termination_reason_message")
    said += f": {reason}" if verbose and reason else ""
    when = here if verbose else ago
    return (name, where, what, cost, said, when(of["submitted_at"]))


def fleet_rows(fleets: Iterable[Any], *, verbose: bool = False) -> list[Row]:
    """The rows of a table of fleets, each with its instances below; with `verbose` whole times and reasons."""
    rows: list[Row] = []
    when = here if verbose else ago
    for fleet in fleets:
        said = fleet["status"]
        if verbose and fleet.get("status_message"):
            said += f": {fleet['status_message']}"
        rows.append((fleet["name"], "", "", "", "", said, when(fleet["created_at"])))
        for each in fleet["instances"]:
            kind, said = each.get("instance_type"), each["status"]
            where = backend(each["backend"], each.get("region")) if each.get("backend") else ""
            what = resources(kind["resources"]) if kind else ""
            if verbose and each.get("termination_reason_message"):
                said += f": {each['termination_reason_message']}"
            cells = (where, what, price(each.get("price")), said, when(each["created"]))
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

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.end()

    def follow(self, run: Any) -> None:
        """Shows how a run that has not ended stands."""
        if run["status"] not in FINISHED:
            self.show(f"{run['run_spec']['run_name']}: {status(run)}")

    def show(self, text: str) -> None:
        """Shows another text."""
        text = plain(text)[: shutil.get_terminal_size().columns - 1 if self._is_terminal else None]
        if text == self._last:
            return
        self._last = text
        click.echo(
            f"\r\x1b[K{text}" if self._is_terminal else text, err=True, nl=not self._is_terminal
        )

    def end(self) -> None:
        """Takes the line away."""
        if self._last and self._is_terminal:
            click.echo("\r\x1b[K", err=True, nl=False)
        self._last = ""


def confirm(question: str) -> bool:
    """Asks whoever is there, or reads the answer from what is piped in; Invalid when nobody answers."""
    while True:
        click.echo(f"{plain(question)} [y/n]: ", nl=False, err=True)
        answer = sys.stdin.readline()
        if not (answer and sys.stdin.isatty()):
            click.echo(err=True)
        if not answer:
            raise Invalid("nobody is there to answer; -y answers yes")
        if answer.strip().lower() in ("y", "yes"):
            return True
        if answer.strip().lower() in ("n", "no"):
            return False


def write(pieces: Iterable[bytes]) -> None:
    """Writes a job's output: to a terminal without what would command it, elsewhere byte by byte."""
    if not sys.stdout.isatty():
        for piece in pieces:
            sys.stdout.buffer.write(piece)
            sys.stdout.buffer.flush()
        return
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    keep_colour = "NO_COLOR" not in os.environ
    last = "\n"
    try:
        for text in shown(map(decoder.decode, pieces), keep_colour=keep_colour):
            click.echo(text, nl=False, color=keep_colour)
            last = text[-1:] or last
    finally:
        # What is said next begins a line.
        click.echo(nl=last != "\n")
