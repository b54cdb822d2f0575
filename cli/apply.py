"""`casemate apply` and `delete`: a file, the plan for it, a question, and then a run or a fleet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urljoin

import click

from cli import configuration
from cli.attach import BIND, PORTS, SSH_IDENTITY, begun, beside, tell_end
from cli.configuration import FILE
from cli.run import PROJECT, YES, see_end
from cli.runs_client import FINISHED, Api, decisive, exit_code, job_of, last_of
from cli.terminal import say
from cli.tunnel import Wish, ending_in_order
from core.errors import Invalid, NotFound

OFFERS_SHOWN = 3
INTERRUPTED = 130


@click.command()
@FILE
@click.option("-d", "--detach", is_flag=True, help="Submit and return.")
@click.option("--force", is_flag=True, help="Also what has not changed, or has changed meanwhile.")
@click.option("-n", "--name", default="", help="The run's name instead of the file's.")
@click.option("--fleet", "fleets", multiple=True, help="Only in this fleet; repeatable.")
@click.option(
    "-e", "--env", "variables", multiple=True,
    help="A variable NAME=VALUE of the run, or NAME to take it from here; repeatable.",
)  # fmt: skip
@click.option(
    "--max-offers", type=click.IntRange(1, 10_000), default=OFFERS_SHOWN, show_default=True,
    help="Number of offers in the plan.",
)  # fmt: skip
@PORTS
@BIND
@SSH_IDENTITY
@YES
@PROJECT
def apply(
    path: Path, detach: bool, force: bool, name: str, fleets: Sequence[str],
    variables: Sequence[str], max_offers: int, ports: Sequence[str], bind: str,
    ssh_identity: Path | None, yes: bool, project: str,
) -> int:  # fmt: skip
    """Submit the run, or make the fleet, that a file describes, after a look at the plan.

    A run is attached to: its output is shown, its ports are forwarded, and the command ends with the code of
    its job.  The first Ctrl+C asks whether to stop it before detaching (with -y it detaches), the second one
    aborts it.
    """
    wanted = configuration.read(path)
    if path == configuration.STDIN and not yes:
        raise Invalid("standard input has the configuration, not the answer; give -y")
    api = Api.of(project)
    if wanted["type"] == "fleet":
        from cli.fleet import apply_fleet

        return apply_fleet(api, wanted, path, yes=yes, detach=detach, force=force)
    configuration.check_sendable(wanted)
    wanted["env"] = configuration.environment(wanted.get("env"), variables)
    if "registry_auth" in wanted:
        wanted["registry_auth"] = configuration.credentials(wanted["registry_auth"], wanted["env"])
    wanted |= {"fleets": list(fleets)} if fleets else {}
    spec = {
        "run_name": name or wanted.get("name"),
        "configuration_path": str(path),
        "configuration": wanted,
        "ssh_key_pub": _public_key(ssh_identity),
    }
    wish = Wish.of(ports, bind, ssh_identity)
    plan = api.plan(spec, max_offers)
    run = _submitted(api, plan, wish if not detach else None, yes=yes, force=force)
    if run is None:
        return 0
    if detach:
        done = "updated" if run.get("deployment_num") else "submitted"
        say(f"Run {run['run_spec']['run_name']} {done}, detaching...")
        return 0
    return _attended(api, run, wish, yes=yes)


def _public_key(identity: Path | None) -> str | None:
    if identity is None:
        return None
    try:
        return identity.with_name(f"{identity.name}.pub").read_text()
    except FileNotFoundError:
        raise NotFound(f"there is no {identity}.pub, which the run is told of") from None


def _submitted(api: Api, plan: Any, wish: Wish | None, *, yes: bool, force: bool) -> Any:
    """The run, if whoever asks for it agrees to its plan; what stands in its way is ended before."""
    from cli import plan as shown
    from cli.runs_view import confirm

    shown.show(plan)
    if not plan["job_plans"][0]["offers"]:
        _say_why_none(api)
    question, in_the_way = _question(plan)
    if question == _SAME and yes and not force:
        say("Use --force to stop it and submit it anew.")
        return None
    if wish:
        wish.check_free(plan["job_plans"][0]["job_spec"])
    if not yes and not confirm(question):
        say("Nothing was submitted.")
        return None
    current = plan["current_resource"]
    if in_the_way:
        api.call("runs/stop", runs_names=[current["run_spec"]["run_name"]], abort=False)
        current = see_end(api, current)
    return api.call(
        "runs/apply", plan={"run_spec": plan["run_spec"], "current_resource": current}, force=force
    )


_SAME = "Stop the run, and submit it anew?"


def _question(plan: Any) -> tuple[str, bool]:
    """What to ask, and whether a run has to end for it; says what is different from that run."""
    from cli.plan import differences

    current, name = plan["current_resource"], plan["run_spec"]["run_name"]
    if current is None or current["status"] in FINISHED:
        return (f"Submit the run {name}?" if name else "Submit a new run?"), False
    changed = differences(current["run_spec"], plan.get("effective_run_spec") or plan["run_spec"])
    if not changed:
        say(f"Active run {name} already exists. Detected no changes.")
        return _SAME, True
    can = "can" if plan["action"] == "update" else "cannot"
    say(f"Active run {name} already exists. Changes that {can} be made in place:")
    for line in changed:
        say(f"  {line}")
    if plan["action"] == "update":
        return "Update the run?", False
    return "Stop and override the run?", True


def _say_why_none(api: Api) -> None:
    if api.call("fleets/list", include_imported=True):
        say("No offers: none of the fleets has what the run needs.")
    else:
        say("No offers: the project has no fleets. Make one first (type: fleet).")


def _attended(api: Api, run: Any, wish: Wish, *, yes: bool) -> int:
    try:
        with ending_in_order():
            run = _seen_through(api, run, wish)
    except KeyboardInterrupt:
        return _left(api, run, yes=yes)
    ended = decisive(run)
    tell_end(run, ended)
    return exit_code(run, ended)


def _seen_through(api: Api, run: Any, wish: Wish) -> Any:
    """The run once it has ended; its output is shown, that of each try."""
    from cli.runs_view import write

    while run["status"] not in FINISHED:
        run = begun(api, run)
        job, url = job_of(run), (run.get("service") or {}).get("url")
        if url and run["status"] == "running":
            # A path is one of the server, and gateways have addresses of their own.
            say(f"The service is at {urljoin(api.entry.url, url)}")
        this_try = last_of(job)["id"]
        if last_of(job)["status"] == "running":
            with beside(api, run, job, wish):
                write(api.followed(run, this_try))
        else:
            write(api.followed(run, this_try))

        def is_next(run: Any, seen: str = this_try) -> bool:
            return run["status"] in FINISHED or last_of(job_of(run))["id"] != seen

        run = api.wait(run["id"], is_next, lambda _: None)
    return run


def _left(api: Api, run: Any, *, yes: bool) -> int:
    """After Ctrl+C: detaches, or stops the run; aborts it after another one."""
    from cli.runs_view import confirm

    name = run["run_spec"]["run_name"]
    try:
        if yes or not confirm(f"\nStop the run {name} before detaching?"):
            say("Detached")
            return 0
        api.call("runs/stop", runs_names=[name], abort=False)
        see_end(api, run)
        say("Stopped")
    except KeyboardInterrupt:
        api.call("runs/stop", runs_names=[name], abort=True)
        say("Aborted")
    return INTERRUPTED


@click.command()
@FILE
@YES
@PROJECT
def delete(path: Path, yes: bool, project: str) -> None:
    """Delete the run or the fleet that a file describes; a run must have ended."""
    from cli.runs_view import confirm

    wanted, api = configuration.read(path), Api.of(project)
    name, kind = wanted.get("name"), "fleet" if wanted["type"] == "fleet" else "run"
    if not name:
        raise Invalid.field("name", f"{path} names nothing that could be deleted")
    if kind == "fleet":
        api.call("fleets/get", name=name)
    else:
        api.run(name)
    if not yes and not confirm(f"Delete the {kind} {name}?"):
        raise click.Abort
    names = {"names": [name]} if kind == "fleet" else {"runs_names": [name]}
    api.call(f"{kind}s/delete", **names)
    say(f"The {kind} {name} is deleted.")
