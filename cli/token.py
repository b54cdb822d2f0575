"""`casemate token`: the tokens of this service's users, for its operator."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.directory import AS_JSON, CONFIG, database, day
from cli.terminal import print_json, print_table, say

if TYPE_CHECKING:
    from models.account import Token

DAY_S = 86_400


@click.group()
def token() -> None:
    """Tokens of users; only their digests are kept."""


@token.command()
@click.argument("user")
@click.option("--project", help="Where it makes things; default: the user's first project.")
@click.option("--name", default="", help="What it is for.")
@click.option(
    "--days", type=click.IntRange(1, 36_500), help="How long it is valid; default: always."
)
@CONFIG
def add(
    user: str, project: str | None, name: str, days: int | None, config_file: Path | None
) -> None:
    """Make a token of USER and print it, this once."""
    from accounts import directory

    with database(config_file).writing() as session:
        made, text = directory.add_token(
            session,
            directory.user_named(session, user),
            name=name,
            made_by="operator",
            project=directory.project_named(session, project) if project else None,
            valid_for_s=days * DAY_S if days else None,
        )
    say(f"token {made.id} of {user}; it is not shown again")
    click.echo(text)


@token.command(name="list")
@click.argument("user", default="")
@AS_JSON
@CONFIG
def show(user: str, as_json: bool, config_file: Path | None) -> None:
    """List the tokens of USER, or of all; never the tokens themselves."""
    from accounts import directory

    with database(config_file).reading() as session:
        owner = directory.user_named(session, user) if user else None
        found = directory.tokens_of(session, owner)
    if as_json:
        print_json([_described(each) for each in found])
        return
    rows = [
        (t.id, t.user.name, t.project.name if t.project else "", t.name, _state(t), day(t.used_ms))
        for t in found
    ]
    print_table(("ID", "USER", "PROJECT", "NAME", "STATE", "USED"), rows)


@token.command()
@click.argument("token_id", metavar="ID")
@CONFIG
def revoke(token_id: str, config_file: Path | None) -> None:
    """End a token at once."""
    from accounts import directory

    with database(config_file).writing() as session:
        directory.revoke_token(session, token_id)


def _described(token: Token) -> dict[str, Any]:
    names = ("id", "name", "made_by", "created_ms", "used_ms", "expires_ms", "revoked_ms")
    return {name: getattr(token, name) for name in names} | {
        "user": token.user.name,
        "project": token.project.name if token.project else None,
    }


def _state(token: Token) -> str:
    if token.revoked_ms is not None:
        return "revoked"
    if not token.user.active:
        return "inactive"
    if token.expires_ms is None:
        return "valid"
    word = "until" if token.expires_ms > time.time() * 1000 else "expired"
    return f"{word} {day(token.expires_ms)}"
