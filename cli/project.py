"""`casemate project`: the projects of this service and their members, for its operator."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.directory import AS_JSON, CONFIG, database
from cli.terminal import print_json, print_table

if TYPE_CHECKING:
    from collections.abc import Iterable

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
