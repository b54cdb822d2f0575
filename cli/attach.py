"""`casemate attach`: the ports, the shell and the output of a running job on this machine."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from cli.run import JOB, PROJECT, REPLICA, SINCE, moment
from cli.runs_client import FINISHED, JOB_FINISHED, Api, exit_code, job_of, last_of
from cli.terminal import say
from cli.tunnel import Tunnel, Wish, ending_in_order, opened
from core.errors import CasemateError, Conflict, Unavailable

PORTS = click.option(
    "-p", "--port", "ports", multiple=True,
    help="A port of the run on this machine: 8000, 80:8000, or *:8000 for any; repeatable.",
)  # fmt: skip
BIND = click.option(
    "--host", "bind", default="localhost", show_default=True,
    help="The address that forwarded ports have here.",
)  # fmt: skip
SSH_IDENTITY = click.option(
    "--ssh-identity",
    metavar="SSH_PRIVATE_KEY",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The private key of the run, where it is not the built-in one.",
)
# Without a connection a run is watched for this long: its end may be the reason.
LOST_S = 5.0
NOT_BEGUN = ("submitted", "provisioning", "pulling")


@click.command()
@click.argument("name")
@click.option("--logs", "with_logs", is_flag=True, help="Show the output, from its beginning.")
@PORTS
@BIND
@JOB
@REPLICA
@SINCE
@SSH_IDENTITY
@PROJECT
def attach(
    name: str, with_logs: bool, ports: Sequence[str], bind: str, job_num: int, replica: int | None,
    since: str | None, ssh_identity: Path | None, project: str,
) -> int:  # fmt: skip
    """Connect to run NAME until it ends or Ctrl+C: its ports, `ssh NAME`, with --logs its output.

    Ends with the code of its job, and with 0 after Ctrl+C, which leaves the run alone.
    """
    api, wish = Api.of(project), Wish.of(ports, bind, ssh_identity)
    start = since and moment(since)
    run = begun(api, api.run(name), job_num, replica)
    job = job_of(run, job_num, replica)
    over = last_of(job)["status"] in JOB_FINISHED
    if over and not with_logs:
        raise Conflict(f"run {name} is over; `casemate logs {name}` shows its output")
    connection = contextlib.nullcontext() if over else opened(api, run, job, wish)
    try:
        with ending_in_order(), connection as tunnel:
            if tunnel:
                describe(tunnel)
                say("Press Ctrl+C to detach.")
            if with_logs:
                _write(api, run, job, start)
            run = _ended(api, run, tunnel)
    except KeyboardInterrupt:
        say("Detached")
        return 0
    job = job_of(run, job_num, replica)
    tell_end(run, job)
    return exit_code(run, job)


def begun(api: Api, run: Any, job_num: int = 0, replica: int | None = None) -> Any:
    """The run once a job of it runs or has run, or it has ended; until then its state is shown."""
    from cli.runs_view import Live

    job_of(run, job_num, replica)  # one that is not there is not waited for

    def has_begun(run: Any) -> bool:
        if run["status"] in FINISHED:
            return True
        is_there = run["status"] in ("running", "terminating")
        return is_there and last_of(job_of(run, job_num, replica))["status"] not in NOT_BEGUN

    with Live() as live:
        return api.wait(run["id"], has_begun, live.follow)


def _write(api: Api, run: Any, job: Any, since: str | None) -> None:
    from cli.runs_view import write

    write(api.followed(run, last_of(job)["id"], since=since))


def _ended(api: Api, run: Any, tunnel: Tunnel | None) -> Any:
    lost: list[float] = []

    def check(run: Any) -> None:
        if tunnel is None or run["status"] in FINISHED or tunnel.is_open():
            return
        lost.append(time.monotonic())
        # The server hears of a VM's end a little later.
        if lost[-1] - lost[0] > LOST_S:
            raise Unavailable("the SSH connection was lost; attach again")

    return api.wait(run["id"], lambda run: run["status"] in FINISHED, check)


def tell_end(run: Any, job: Any) -> None:
    """Says how a run ended, by a job of it."""
    ended = last_of(job)
    say(f"{run['run_spec']['run_name']}: {ended.get('status_message') or ended['status']}")
    if run["status"] != "done" and (reason := ended.get("termination_reason_message")):
        say(reason)


@contextlib.contextmanager
def beside(api: Api, run: Any, job: Any, wish: Wish) -> Iterator[None]:
    """Holds a connection to a job while the block shows its output; one that fails is told of and ends nothing."""
    over = threading.Event()

    def hold() -> None:
        try:
            with opened(api, run, job, wish, is_given_up=over.is_set) as tunnel:
                describe(tunnel)
                over.wait()
        except CasemateError as error:
            if not over.is_set():
                say(f"not attached: {error.message}")

    thread = threading.Thread(target=hold)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def describe(tunnel: Tunnel) -> None:
    """Says what a connection offers."""
    for remote, local in tunnel.ports.items():
        say(f"{tunnel.bind}:{local} is port {remote} of the run")
    say(f"To connect to the run: ssh {tunnel.host}")
