"""`casemate user`: the users of this service, for its operator."""

from __future__ import annotations

from pathlib import Path

import click

from cli.directory import AS_JSON, CONFIG, database, day
from cli.terminal import print_json, print_table, say

ROLE = click.Choice(["admin", "user"])


@click.group()
def user() -> None:
    """Users of this service.

    An admin is an operator and sees every VM; a user sees the VMs of their projects.
    """


@user.command()
@click.argument("name")
@click.option("--admin", is_flag=True, help="An operator, who sees every VM.")
@click.option("--email", help="For people to know; nothing is sent.")
@CONFIG
def add(name: str, admin: bool, email: str | None, config_file: Path | None) -> None:
    """Make a user and a project of the same name."""
    from accounts import directory
    from accounts.roles import GlobalRole

    role = GlobalRole.ADMIN if admin else GlobalRole.USER
    with database(config_file).writing() as session:
        directory.add_user(session, name, role=role, email=email)
    say(f"user {name} was made; `casemate token add {name}` makes a token")


@user.command(name="list")
@AS_JSON
@CONFIG
def show(as_json: bool, config_file: Path | None) -> None:
    """List the users."""
    from accounts import directory

    with database(config_file).reading() as session:
        found = directory.users(session)
    if as_json:
        names = ("id", "name", "role", "email", "active", "created_ms")
        print_json([{name: getattr(each, name) for name in names} for each in found])
        return
    rows = [
        (u.name, u.role, "yes" if u.active else "no", u.email or "", day(u.created_ms))
        for u in found
    ]
    print_table(("NAME", "ROLE", "ACTIVE", "EMAIL", "MADE"), rows)


@user.command()
@click.argument("name")
@click.option("--role", type=ROLE, help="admin: an operator.")
@click.option("--email", help="For people to know; nothing is sent.")
@click.option("--active/--inactive", default=None, help="An inactive user is refused at once.")
@CONFIG
def update(
    name: str,
    role: str | None,
    email: str | None,
    active: bool | None,
    config_file: Path | None,
) -> None:
    """Change what is given of a user."""
    from accounts import directory
    from accounts.roles import GlobalRole

    with database(config_file).writing() as session:
        found = directory.user_named(session, name)
        given = GlobalRole(role) if role else None
        directory.change_user(session, found, role=given, email=email, active=active)


@user.command()
@click.argument("name")
@CONFIG
def remove(name: str, config_file: Path | None) -> None:
    """Remove a user and their tokens; their projects pass to user admin."""
    from accounts import directory

    with database(config_file).writing() as session:
        directory.remove_user(session, directory.user_named(session, name))
