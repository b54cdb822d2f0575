"""Users, tokens, projects and members: each verb in the caller's transaction, so that what belongs together commits together."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Sequence

from sqlalchemy import func, select, update
from sqlalchemy.orm import Session, selectinload

from accounts import tokens
from accounts.roles import GlobalRole, ProjectRole
from core.errors import Conflict, Invalid, NotFound
from models.account import ADMIN_ID, MAIN_ID, Member, Project, Token, User
from models.vm import Vm

# secretvm.md section 1 and runs.md section 3.
_USER_NAME = re.compile(r"[a-z0-9._-]{1,60}")
_PROJECT_NAME = re.compile(r"[a-z][a-z0-9-]{1,40}")

# Users ---------------------------------------------------------------------------------------


def users(session: Session) -> Sequence[User]:
    """All users by name."""
    return session.scalars(select(User).order_by(User.name)).all()


def user_named(session: Session, name: str) -> User:
    """The user of that name, or NotFound."""
    user = session.scalar(select(User).where(User.name == name))
    if user is None:
        raise NotFound(f"there is no user {name[:64]}")
    return user


def add_user(
    session: Session, name: str, *, role: GlobalRole = GlobalRole.USER, email: str | None = None
) -> User:
    """Makes a user and a project of the same name, which is the user's first and own.

    Invalid when the name breaks its rule, Conflict when a user or a project has it already.
    """
    if not _USER_NAME.fullmatch(name):
        raise Invalid.field("name", "must be 1 to 60 of a-z, 0-9, '.', '_' and '-'")
    if session.scalar(select(User.id).where(User.name == name)):
        raise Conflict(f"there is a user {name} already")
    user = User(id=_new_id(), name=name, role=role, email=email, active=True, created_ms=_now_ms())
    session.add(user)
    session.flush()
    _add_project(session, name, user)
    return user


def change_user(
    session: Session,
    user: User,
    *,
    role: GlobalRole | None = None,
    email: str | None = None,
    active: bool | None = None,
) -> None:
    """Changes what is given; a user that is not active is refused everywhere at once."""
    if user.id == ADMIN_ID and (role not in (None, GlobalRole.ADMIN) or active is False):
        raise Invalid("user admin holds the administrator's token and stays an active admin")
    user.role = user.role if role is None else role
    user.email = user.email if email is None else email
    user.active = user.active if active is None else active


def remove_user(session: Session, user: User) -> None:
    """Removes a user, tokens and memberships; their projects stay and pass to user admin."""
    if user.id == ADMIN_ID:
        raise Invalid("user admin holds the administrator's token and cannot be removed")
    admin = session.get_one(User, ADMIN_ID)
    for project in session.scalars(select(Project).where(Project.owner_id == user.id)).all():
        project.owner = admin
        set_member(session, project, admin, ProjectRole.ADMIN)
    session.execute(update(Vm).where(Vm.user_id == user.id).values(user_id=None))
    session.flush()
    session.delete(user)
    session.flush()


# Tokens --------------------------------------------------------------------------------------


def tokens_of(session: Session, user: User | None = None) -> Sequence[Token]:
    """The tokens of a user, or of all, in the order they were made; those that were revoked too."""
    asked = select(Token).options(selectinload(Token.project))
    asked = asked.order_by(Token.created_ms, Token.id)
    return session.scalars(asked if user is None else asked.where(Token.user_id == user.id)).all()


def add_token(
    session: Session,
    user: User,
    *,
    name: str,
    made_by: str,
    project: Project | None = None,
    valid_for_s: int | None = None,
) -> tuple[Token, str]:
    """Makes a token of a user; its text is given here and never again.

    It makes things in `project`, or in the user's first; Invalid when the user has no role in it.
    """
    if project is not None and role_in(session, project, user) is None:
        raise Invalid.field("project", f"{user.name} has no role in {project.name}")
    text, now = tokens.make(), _now_ms()
    token = Token(
        id=_new_id(),
        digest=tokens.digest(text),
        user=user,
        project=project,
        name=name,
        made_by=made_by,
        created_ms=now,
        expires_ms=None if valid_for_s is None else now + valid_for_s * 1000,
    )
    session.add(token)
    session.flush()
    return token, text


def revoke_token(session: Session, token_id: str) -> None:
    """Ends a token at once; NotFound when there is none, nothing when it has ended already."""
    token = session.get(Token, token_id)
    if token is None:
        raise NotFound(f"there is no token {token_id[:64]}")
    token.revoked_ms = token.revoked_ms or _now_ms()


def revoke_tokens(session: Session, user: User, made_by: str) -> None:
    """Ends the tokens of a user that one surface issued."""
    valid = (Token.user_id == user.id, Token.made_by == made_by, Token.revoked_ms.is_(None))
    session.execute(update(Token).where(*valid).values(revoked_ms=_now_ms()))


# Projects ------------------------------------------------------------------------------------


def projects(session: Session) -> Sequence[Project]:
    """All projects by name."""
    return session.scalars(select(Project).order_by(Project.name)).all()


def project_named(session: Session, name: str) -> Project:
    """The project of that name, or NotFound."""
    project = session.scalar(select(Project).where(Project.name == name))
    if project is None:
        raise NotFound(f"there is no project {name[:64]}")
    return project


def first_project(session: Session, user: User) -> Project | None:
    """The project that a user's new things belong to where a token says nothing else."""
    joined = select(Project).join(Member, Member.project_id == Project.id)
    return session.scalar(joined.where(Member.user_id == user.id).order_by(Member.id).limit(1))


def add_project(session: Session, name: str, owner: User) -> Project:
    """Makes a project whose owner is its first admin; Invalid or Conflict for its name."""
    if not _PROJECT_NAME.fullmatch(name):
        raise Invalid.field(
            "name", "must be 2 to 41 of a-z, 0-9 and '-' and begin with a letter of them"
        )
    return _add_project(session, name, owner)


def remove_project(session: Session, project: Project) -> None:
    """Removes a project without VMs; Conflict says how many it has."""
    if project.id == MAIN_ID:
        raise Invalid("project main is where the operator's VMs are and cannot be removed")
    count = session.scalar(select(func.count()).select_from(Vm).where(Vm.project_id == project.id))
    if count:
        raise Conflict(f"project {project.name} has {count} VMs; remove them first")
    session.delete(project)
    session.flush()


def members(session: Session, project: Project) -> Sequence[Member]:
    """The members of a project, the first one first."""
    asked = select(Member).where(Member.project_id == project.id).order_by(Member.id)
    return session.scalars(asked).all()


def role_in(session: Session, project: Project, user: User) -> ProjectRole | None:
    """A user's role in a project, or None."""
    found = _member(session, project, user)
    return None if found is None else ProjectRole(found.role)


def set_member(session: Session, project: Project, user: User, role: ProjectRole) -> None:
    """Gives a user a role in a project, instead of the one they had; its owner stays admin."""
    if user.id == project.owner_id and role != ProjectRole.ADMIN:
        raise Invalid(f"{user.name} owns project {project.name} and stays its admin")
    found = _member(session, project, user)
    if found is None:
        session.add(Member(project_id=project.id, user_id=user.id, role=role))
    else:
        found.role = role
    session.flush()


def remove_member(session: Session, project: Project, user: User) -> None:
    """Takes a user out of a project; NotFound when they are not in it."""
    if user.id == project.owner_id:
        raise Invalid(f"{user.name} owns project {project.name} and stays its admin")
    found = _member(session, project, user)
    if found is None:
        raise NotFound(f"{user.name} is not a member of project {project.name}")
    session.delete(found)
    session.flush()


# Steps ---------------------------------------------------------------------------------------


def _add_project(session: Session, name: str, owner: User) -> Project:
    if session.scalar(select(Project.id).where(Project.name == name)):
        raise Conflict(f"there is a project {name} already")
    project = Project(id=_new_id(), name=name, owner=owner, created_ms=_now_ms())
    session.add(project)
    session.flush()
    set_member(session, project, owner, ProjectRole.ADMIN)
    return project


def _member(session: Session, project: Project, user: User) -> Member | None:
    return session.scalar(
        select(Member).where(Member.project_id == project.id, Member.user_id == user.id)
    )


def _new_id() -> str:
    return str(uuid.uuid4())


def _now_ms() -> int:
    return time.time_ns() // 1_000_000
