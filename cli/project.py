"""`casemate project`: the projects of this service and their members, for its operator; and those that the commands
of runs know, on this machine and elsewhere."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.directory import AS_JSON, CONFIG, database
from cli.terminal import print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cli.runs_config import Entry
    from models.account import Member, Project


@click.group()
def project() -> None:
    """Projects and their members."""


@project.command()
@click.argument("name")
@click.option("--owner", default="admin", show_default=True, help="A user, its first member.")
@CONFIG
def create(name: str, owner: str, config_file: Path | None) -> None:
    """Make a project; its owner is its first admin."""
    from accounts import directory

    with database(config_file).writing() as session:
        directory.add_project(session, name, directory.user_named(session, owner))


@project.command()
@click.argument("name", default="")
@AS_JSON
@CONFIG
def members(name: str, as_json: bool, config_file: Path | None) -> None:
    """Show who is in project NAME, or in each."""
    from accounts import directory

    with database(config_file).reading() as session:
        found = [directory.project_named(session, name)] if name else directory.projects(session)
        shown = [_described(each, directory.members(session, each)) for each in found]
    if as_json:
        print_json(shown)
        return
    rows = [
        (each["name"], member["user"], member["role"], "owner" if member["is_owner"] else "")
        for each in shown
        for member in each["members"]
    ]
    print_table(("PROJECT", "USER", "ROLE", ""), rows)


@project.command()
@click.argument("name")
@click.argument("user")
@click.option(
    "--role",
    type=click.Choice(["admin", "manager", "user"]),
    default="user",
    help="In the project.",
)
@CONFIG
def grant(name: str, user: str, role: str, config_file: Path | None) -> None:
    """Give USER a role in project NAME, instead of the one they had."""
    from accounts import directory
    from accounts.roles import ProjectRole

    with database(config_file).writing() as session:
        found = directory.project_named(session, name)
        member = directory.user_named(session, user)
        directory.set_member(session, found, member, ProjectRole(role))


@project.command()
@click.argument("name")
@click.argument("user")
@CONFIG
def withdraw(name: str, user: str, config_file: Path | None) -> None:
    """Take USER out of project NAME."""
    from accounts import directory

    with database(config_file).writing() as session:
        found = directory.project_named(session, name)
        directory.remove_member(session, found, directory.user_named(session, user))


@project.command()
@click.argument("name")
@CONFIG
def remove(name: str, config_file: Path | None) -> None:
    """Remove project NAME, which must have no VMs."""
    from accounts import directory

    with database(config_file).writing() as session:
        directory.remove_project(session, directory.project_named(session, name))


# What the commands of runs know ------------------------------------------------------------------


@project.command()
@click.option("--name", required=True, help="The project, as its server calls it.")
@click.option("--url", required=True, help="The server.")
@click.option(
    "--token", prompt=True, hide_input=True, help="A token of a user there; asked for if absent."
)
@click.option("-y", "--yes", is_flag=True, help="Make it the default project, without asking.")
@click.option(
    "-n", "--no", "stays", is_flag=True, help="Leave the default project as it is, without asking."
)
def add(name: str, url: str, token: str, yes: bool, stays: bool) -> None:
    """Remember a project of a server for the commands of runs, and where to find it."""
    from cli import runs_config
    from cli.runs_client import Api
    from cli.runs_view import confirm

    entry = runs_config.Entry(name, url.rstrip("/"), token)
    Api(entry).check()
    runs_config.add(entry)
    default = runs_config.chosen("").name
    if default == name or stays:
        return
    if yes or confirm(f"Make {name} the default project instead of {default}?"):
        runs_config.set_default(name)


@project.command("list")
@click.option("-v", "--verbose", is_flag=True, help="Also who one is there.")
@AS_JSON
def list_projects(verbose: bool, as_json: bool) -> None:
    """List the projects that the commands of runs know."""
    from cli import runs_config

    found = runs_config.entries()
    if as_json:
        print_json([{"name": e.name, "url": e.url, "default": e.default} for e in found])
        return
    users = [_username(entry) if verbose else "" for entry in found]
    head = ("PROJECT", "URL", *(["USER"] if verbose else []), "DEFAULT")
    rows = [
        (e.name, e.url, *([user] if verbose else []), "✓" if e.default else "")
        for e, user in zip(found, users, strict=True)
    ]
    print_table(head, rows)


def _username(entry: Entry) -> str:
    from cli.runs_client import Api
    from core.errors import CasemateError

    try:
        return str(Api(entry).call("/api/users/get_my_user")["username"])
    except CasemateError as error:
        return f"({error.message})"


@project.command("set-default")
@click.argument("name")
def set_default(name: str) -> None:
    """Make NAME the project that is meant when none is named."""
    from cli import runs_config

    runs_config.set_default(name)


@project.command("delete")
@click.option("--name", required=True, help="The project.")
@click.option("-y", "--yes", is_flag=True, help="Do not ask.")
def forget(name: str, yes: bool) -> None:
    """Forget a project of the commands of runs; nothing happens to the project."""
    from cli import runs_config
    from cli.runs_view import confirm

    if not yes and not confirm(f"Forget the project {name}?"):
        raise click.Abort
    runs_config.delete(name)


def _described(project: Project, members: Iterable[Member]) -> dict[str, Any]:
    return {
        "id": project.id,
        "name": project.name,
        "owner": project.owner.name,
        "created_ms": project.created_ms,
        "members": [
            {"user": m.user.name, "role": m.role, "is_owner": m.user_id == project.owner_id}
            for m in members
        ],
    }
