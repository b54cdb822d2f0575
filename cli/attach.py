"""`casemate attach`: the ports, the shell and the output of a running job on this machine."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import click

from cli.run import JOB, PROJECT, REPLICA, SINCE, moment
from cli.runs_client import FINISHED, JOB_FINISHED, Api, exit_code, job_of, last_of
from cli.terminal import say
from cli.tunnel import Tunnel, Wish, opened
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
    run = begun(api, api.run(name))
    job = job_of(run, job_num, replica)
    over = last_of(job)["status"] in JOB_FINISHED
    if over and not with_logs:
        raise Conflict(f"run {name} is over; `casemate logs {name}` shows its output")
    try:
        with contextlib.nullcontext() if over else opened(api, run, job, wish) as tunnel:
            if tunnel:
                describe(tunnel)
                say("Press Ctrl+C to detach.")
            if with_logs:
                _write(api, run, job, start)
            return exit_code(_ended(api, run, tunnel), job_num, replica)
    except KeyboardInterrupt:
        say("Detached")
        return 0


def begun(api: Api, run: Any) -> Any:
    """The run once its first job runs or has run, or it has ended; until then its state is shown."""
    from cli.runs_view import Live

    with Live() as live:
        return api.wait(run["id"], _has_begun, live.follow)


def _has_begun(run: Any) -> bool:
    if run["status"] in FINISHED:
        return True
    is_there = run["status"] in ("running", "terminating")
    return is_there and last_of(run["jobs"][0])["status"] not in NOT_BEGUN


def _write(api: Api, run: Any, job: Any, since: str | None) -> None:
    from cli.runs_view import write

    write(api.followed(run, last_of(job)["id"], since=since))


def _ended(api: Api, run: Any, tunnel: Tunnel | None) -> Any:
    def check(run: Any) -> None:
        if tunnel and run["status"] not in FINISHED and not tunnel.is_open():
            raise Unavailable("the SSH connection was lost; attach again")

    return api.wait(run["id"], lambda run: run["status"] in FINISHED, check)


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
