"""`casemate attach`: the ports, the shell and the output of a running job on this machine."""

from __future__ import annotations

import contextlib
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click

from cli.run import JOB, PROJECT, REPLICA, SINCE, moment
from cli.runs_client import FINISHED, Api, exit_code, last_submission
from cli.terminal import say
from core.errors import Conflict

SSH_IDENTITY = click.option(
    "--ssh-identity",
    type=click.Path(path_type=Path, dir_okay=False, exists=True),
    help="The private key of the run, where it is not the built-in one.",
)


@click.command()
@click.argument("name")
@click.option("--logs", "with_logs", is_flag=True, help="Show the output from the start.")
@click.option("-p", "--port", "ports", multiple=True, help="Forward a port: 8000, or 80:8000.")
@click.option("--host", "bind", default="localhost", help="The address that forwarded ports have here.")
@JOB
@REPLICA
@SINCE
@SSH_IDENTITY
@PROJECT
def attach(
    name: str,
    with_logs: bool,
    ports: Sequence[str],
    bind: str,
    job_num: int,
    replica: int | None,
    since: str | None,
    ssh_identity: Path | None,
    project: str,
) -> int:
    """Connect to run NAME until Ctrl+C: its ports and `ssh NAME`, with --logs also its output.

    With --logs it ends with the run, and with the code of its job.
    """
    from cli.runs_view import Live, status

    api, live = Api.of(project), Live()
    run = api.wait(
        name,
        lambda run: run["status"] in ("running", *FINISHED),
        lambda run: live.show(f"{name}: {status(run)}"),
    )
    live.end()
    if run["status"] in FINISHED and run["status"] != "done":
        raise Conflict(f"run {name} is over: {status(run)}")
    with attached(api, run, job_num, replica, ports, bind, ssh_identity), contextlib.suppress(
        KeyboardInterrupt
    ):
        if not with_logs:
            say("Press Ctrl+C to detach.")
            signal.pause()
        copy_output(api, run, job_num, replica, since=since and moment(since))
        return exit_code(api.wait(name, lambda run: run["status"] in FINISHED, lambda _: None))
    return 0


@contextlib.contextmanager
def attached(
    api: Api,
    run: Any,
    job_num: int,
    replica: int | None,
    ports: Sequence[str],
    bind: str,
    identity: Path | None,
) -> Any:
    """Holds the connection to a job and says what it offers."""
    from cli import tunnel

    submission = last_submission(run, job_num, replica)
    job = next(each for each in run["jobs"] if submission in each["job_submissions"])
    wanted = tunnel.forwards(job["job_spec"], ports)
    with tunnel.opened(api, run, job, wanted, bind=bind, identity=identity) as opened:
        for remote, local in opened.ports.items():
            say(f"{bind}:{local} -> port {remote} of the run")
        say(f"Shell: ssh {opened.host}")
        yield opened


def copy_output(
    api: Api, run: Any, job_num: int, replica: int | None, *, since: str | None = None
) -> None:
    """Writes the output of a job to ours until the run has ended."""
    submission = last_submission(run, job_num, replica)["id"]
    name = run["run_spec"]["run_name"]
    for piece in api.output(name, submission, since=since, follow=True):
        sys.stdout.buffer.write(piece)
        sys.stdout.buffer.flush()
