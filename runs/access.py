"""Which projects a caller sees and what they may do there; global admins see and may do all (runs.md section 5)."""

from __future__ import annotations

import re
from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.orm import Session

from accounts import directory
from accounts.roles import Caller, ProjectRole
from core.errors import Invalid, NotFound
from models.account import Member, Project, User
from runs import refusals

_VERSION = re.compile(r"(\d{1,6})\.(\d{1,6})(?:\.\w{1,32})*")


def project(
    session: Session, caller: Caller, name: str, needed: ProjectRole = ProjectRole.USER
) -> Project:
    """The project of that name; NotFound without one, Forbidden when the caller may not do this there."""
    found = session.scalar(select(Project).where(Project.name == name))
    if found is None:
        raise NotFound("Not found")
    role = role_in(session, caller, found)
    if role is None or not role.covers(needed):
        raise refusals.denied()
    return found


def role_in(session: Session, caller: Caller, of: Project) -> ProjectRole | None:
    """What a caller is in a project, or None."""
    if caller.is_operator:
        return ProjectRole.ADMIN
    return directory.role_in(session, of, user(session, caller))


def visible(session: Session, caller: Caller) -> Sequence[str]:
    """The ids of the projects that a caller may look into."""
    if caller.is_operator:
        return session.scalars(select(Project.id)).all()
    return session.scalars(select(Member.project_id).where(Member.user_id == caller.user_id)).all()


def user(session: Session, caller: Caller) -> User:
    """The row of a caller."""
    return session.get_one(User, caller.user_id)


def operator(caller: Caller) -> None:
    """Forbidden for everybody but global admins."""
    if not caller.is_operator:
        raise refusals.denied()


def check_version(given: str | None, ours: str) -> None:
    """Invalid for a client of a newer major or minor version, and for what is no version."""
    if given is None:
        return
    theirs, known = _VERSION.fullmatch(given.strip()), _VERSION.match(ours)
    if theirs is None:
        raise NotAVersion(f"Invalid version: {given[:40]!r}")
    assert known is not None
    if tuple(map(int, theirs.groups())) > tuple(map(int, known.groups())):
        raise Invalid(
            f"The client/CLI version ({given}) is incompatible with the server version ({ours})."
        )


class NotAVersion(Invalid):
    """The version header has no version."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.details["code"] = None
