"""Users, their keys and tokens, projects and members, as dstack's clients manage them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, or_, select
from sqlalchemy.orm import Session

from accounts import directory, keypairs
from accounts.keypairs import Safe
from accounts.roles import Caller, GlobalRole, ProjectRole
from core.errors import CasemateError, Conflict, Invalid, NotFound
from models.account import Member, Project, SshKey, User
from models.base import Database
from models.fleet import Fleet
from runs import access, description, refusals, timeline
from runs.cursor import Cursor
from runs.description import Answer

# The surface that issued a token: refresh_token ends those of its own alone.
MADE_BY = "runs"


@dataclass(frozen=True)
class Page:
    """Which part of a list: the first `limit` behind a time and an id."""

    name_pattern: str | None = None
    prev_created_at: int | None = None
    prev_id: str | None = None
    limit: int = 2000
    ascending: bool = False
    return_total_count: bool = False


@dataclass(frozen=True)
class People:
    """The accounts of one data directory."""

    database: Database
    safe: Safe

    # Users -------------------------------------------------------------------------------------

    def me(self, caller: Caller, token: str) -> Answer:
        """The caller, with the token they came with and the pair that is theirs."""
        with self.database.reading() as session:
            row = access.user(session, caller)
            if pair := keypairs.built_in(session, row):
                return self._with_creds(session, row, pair, token)
        with self.database.writing() as session:
            row = access.user(session, caller)
            pair = keypairs.built_in(session, row) or keypairs.make_pair(session, row, self.safe)
            return self._with_creds(session, row, pair, token)

    def users(self, caller: Caller, page: Page) -> tuple[int, list[Answer]]:
        """How many users there are and those of a page: an admin sees all, others themselves."""
        with self.database.reading() as session:
            asked = select(User)
            if not caller.is_operator:
                asked = asked.where(User.id == caller.user_id)
            total, rows = _page(session, asked, User, page)
            keys = _keys(session, rows)
            return total, [description.user(row, keys) for row in rows]

    def user(self, caller: Caller, name: str) -> Answer:
        """A user with their key pair; for admins."""
        access.operator(caller)
        with self.database.reading() as session:
            row = _user(session, name)
            return self._with_creds(session, row, keypairs.built_in(session, row), "")

    def create_user(
        self, caller: Caller, name: str, role: str, email: str | None, active: bool
    ) -> Answer:
        """Makes a user with a key pair and a project; for admins."""
        access.operator(caller)
        with self.database.writing() as session:
            with _named("username"):
                row = directory.add_user(session, name, role=GlobalRole(role), email=email)
            directory.change_user(session, row, active=active)
            keypairs.make_pair(session, row, self.safe)
            timeline.tell(session, "User created", timeline.of_user(row), by=caller)
            return description.user(row, _keys(session, [row]))

    def update_user(
        self, caller: Caller, name: str, role: str, email: str | None, active: bool
    ) -> Answer:
        """Changes a user; for admins."""
        access.operator(caller)
        with self.database.writing() as session:
            row = _user(session, name)
            directory.change_user(session, row, role=GlobalRole(role), active=active)
            row.email = email
            timeline.tell(session, "User updated", timeline.of_user(row), by=caller)
            return description.user(row, _keys(session, [row]))

    def delete_users(self, caller: Caller, names: Iterable[str]) -> None:
        """Removes users, all or none; what they owned stays with its project."""
        access.operator(caller)
        with self.database.writing() as session:
            for row in [_user(session, name) for name in dict.fromkeys(names)]:
                timeline.tell(session, "User deleted", timeline.of_user(row), by=caller)
                directory.remove_user(session, row)

    def refresh_token(self, caller: Caller, name: str) -> Answer:
        """A new token instead of those that this surface issued; for oneself or an admin."""
        with self.database.writing() as session:
            row = _oneself(session, caller, name)
            directory.revoke_tokens(session, row, MADE_BY)
            _, text = directory.add_token(session, row, name="runs", made_by=MADE_BY)
            timeline.tell(session, "User token refreshed", timeline.of_user(row), by=caller)
            return self._with_creds(session, row, keypairs.built_in(session, row), text)

    def refresh_ssh_key(self, caller: Caller, name: str) -> Answer:
        """A new key pair; for oneself or an admin."""
        with self.database.writing() as session:
            row = _oneself(session, caller, name)
            pair = keypairs.make_pair(session, row, self.safe)
            timeline.tell(session, "User SSH key refreshed", timeline.of_user(row), by=caller)
            return self._with_creds(session, row, pair, "")

    def _with_creds(self, session: Session, row: User, pair: SshKey | None, token: str) -> Answer:
        return {
            **description.user(row, _keys(session, [row])),
            "creds": {"token": token},
            "ssh_private_key": pair and keypairs.private_half(pair, self.safe),
        }

    # Public keys -------------------------------------------------------------------------------

    def public_keys(self, caller: Caller) -> list[Answer]:
        """The public keys that the caller added."""
        with self.database.reading() as session:
            rows = keypairs.own_keys(session, access.user(session, caller))
            return [description.public_key(row) for row in rows]

    def add_public_key(self, caller: Caller, key: str, name: str | None) -> Answer:
        """Adds a public key of the caller."""
        with self.database.writing() as session:
            row = keypairs.add_key(session, access.user(session, caller), key, name)
            return description.public_key(row)

    def delete_public_keys(self, caller: Caller, ids: Sequence[str]) -> None:
        """Removes public keys of the caller, all or none."""
        with self.database.writing() as session:
            keypairs.remove_keys(session, access.user(session, caller), ids)

    # Projects ----------------------------------------------------------------------------------

    def projects(
        self, caller: Caller, page: Page, *, include_not_joined: bool, username: str | None = None
    ) -> tuple[int, list[Answer]]:
        """The projects that a caller sees: with `include_not_joined` also public ones, and for admins all."""
        with self.database.reading() as session:
            joined = select(Member.project_id).where(Member.user_id == caller.user_id)
            asked = select(Project)
            if not include_not_joined:
                asked = asked.where(Project.id.in_(joined))
            elif not caller.is_operator:
                asked = asked.where(or_(Project.id.in_(joined), Project.is_public.is_(True)))
            if username is not None:
                named = select(Member.project_id).join(Member.user).where(User.name == username)
                asked = asked.where(Project.id.in_(named))
            total, rows = _page(session, asked, Project, page)
            return total, [_project(session, row) for row in rows]

    def projects_without_fleets(self, caller: Caller) -> list[Answer]:
        """The caller's projects in which no run could start."""
        with self.database.reading() as session:
            having = select(Fleet.project_id).where(Fleet.deleted.is_(False))
            seen = access.visible(session, caller)
            asked = select(Project).where(Project.id.in_(seen), Project.id.not_in(having))
            return [_project(session, row) for row in session.scalars(asked.order_by(Project.name))]

    def project(self, caller: Caller, name: str) -> Answer:
        """A project; one that is public may be looked at by everybody."""
        with self.database.reading() as session:
            row = session.scalar(select(Project).where(Project.name == name))
            if row is None or not row.is_public:
                row = access.project(session, caller, name)
            return _project(session, row)

    def create_project(self, caller: Caller, name: str, is_public: bool) -> Answer:
        """Makes a project that belongs to the caller."""
        with self.database.writing() as session:
            with _named("project_name"):
                row = directory.add_project(session, name, access.user(session, caller))
            row.is_public = is_public
            timeline.tell(session, "Project created", timeline.of_project(row), by=caller)
            return _project(session, row)

    def update_project(self, caller: Caller, name: str, is_public: bool | None) -> Answer:
        """Changes who may look at a project; for its admins."""
        with self.database.writing() as session:
            row = access.project(session, caller, name, ProjectRole.ADMIN)
            row.is_public = row.is_public if is_public is None else is_public
            timeline.tell(session, "Project updated", timeline.of_project(row), by=caller)
            return _project(session, row)

    def delete_projects(self, caller: Caller, names: Iterable[str]) -> None:
        """Removes projects without fleets and VMs, all or none; for their admins."""
        with self.database.writing() as session:
            for name in dict.fromkeys(names):
                row = access.project(session, caller, name, ProjectRole.ADMIN)
                if session.scalar(_fleets(row.id)):
                    raise refusals.refused(f"Project {name} has fleets; delete them first")
                timeline.tell(session, "Project deleted", timeline.of_project(row), by=caller)
                directory.remove_project(session, row)

    # Members -----------------------------------------------------------------------------------

    def add_members(
        self, caller: Caller, name: str, members: Sequence[Mapping[str, str]]
    ) -> Answer:
        """Gives users roles in a project; managers may not make admins, everybody may join a public one."""
        with self.database.writing() as session:
            row, role = _managed(session, caller, name, members)
            for username, wished in _roles(session, members):
                _check_may_give(session, row, role, username, wished, caller)
                directory.set_member(session, row, username, wished)
                _tell_member(session, row, username, "added to", caller)
            return _project(session, row)

    def set_members(
        self, caller: Caller, name: str, members: Sequence[Mapping[str, str]]
    ) -> Answer:
        """Makes these, beside the owner, all members of a project."""
        with self.database.writing() as session:
            row, role = _managed(session, caller, name)
            wished = dict(_roles(session, members)) | {row.owner: ProjectRole.ADMIN}
            for member in directory.members(session, row):
                if member.user not in wished:
                    _check_may_take(session, row, role, member.user)
                    directory.remove_member(session, row, member.user)
            for user, each in wished.items():
                if directory.role_in(session, row, user) is not each:
                    _check_may_give(session, row, role, user, each, caller)
                    directory.set_member(session, row, user, each)
            timeline.tell(session, "Project members set", timeline.of_project(row), by=caller)
            return _project(session, row)

    def remove_members(self, caller: Caller, name: str, usernames: Sequence[str]) -> Answer:
        """Takes users out of a project; everybody may leave one."""
        with self.database.writing() as session:
            leaving = list(usernames) == [caller.name]
            row = access.project(session, caller, name)
            role = access.role_in(session, caller, row)
            assert role is not None
            if not leaving and not role.covers(ProjectRole.MANAGER):
                raise refusals.denied()
            for user in [_user(session, each) for each in dict.fromkeys(usernames)]:
                if not leaving:
                    _check_may_take(session, row, role, user)
                _take(session, row, user)
                _tell_member(session, row, user, "removed from", caller)
            return _project(session, row)


def keys_of(session: Session, user_id: str) -> list[str]:
    """The public keys that lead into a user's jobs."""
    asked = select(SshKey.public_key).where(SshKey.user_id == user_id).order_by(SshKey.created_ms)
    return [text.strip() for text in session.scalars(asked)]


@contextmanager
def _named(field: str) -> Iterator[None]:
    """Says of a name that is refused what this interface calls it."""
    try:
        yield
    except Conflict as error:
        raise refusals.exists(error.message) from None
    except Invalid as error:
        raise Invalid.field(field, " ".join(error.fields.get("name", [error.message]))) from None


def _user(session: Session, name: str) -> User:
    row = session.scalar(select(User).where(User.name == name))
    if row is None:
        raise refusals.missing(f"User {name[:64]}")
    return row


def _oneself(session: Session, caller: Caller, name: str) -> User:
    if not caller.is_operator and caller.name != name:
        raise refusals.denied()
    return _user(session, name)


def _keys(session: Session, rows: Iterable[User]) -> dict[str, str]:
    asked = select(SshKey.user_id, SshKey.public_key).where(
        SshKey.user_id.in_([row.id for row in rows]), SshKey.private_key.is_not(None)
    )
    return {user_id: text for user_id, text in session.execute(asked)}


def _project(session: Session, row: Project) -> Answer:
    members = directory.members(session, row)
    keys = _keys(session, [row.owner, *(each.user for each in members)])
    return description.project(row, members, keys)


def _page(session: Session, asked: Any, table: Any, page: Page) -> tuple[int, Sequence[Any]]:
    if page.name_pattern:
        asked = asked.where(table.name.contains(page.name_pattern.replace("_", r"\_"), escape="\\"))
    total = session.scalar(select(func.count()).select_from(asked.subquery())) or 0
    moment_ms = None if page.prev_created_at is None else page.prev_created_at // 1000
    cursor = Cursor(moment_ms, page.prev_id, page.limit, page.ascending)
    return total, session.scalars(cursor.page(asked, table.created_ms, table.id)).all()


def _fleets(project_id: str) -> Any:
    return select(Fleet.id).where(Fleet.project_id == project_id, Fleet.deleted.is_(False)).limit(1)


def _managed(
    session: Session, caller: Caller, name: str, joining: Sequence[Mapping[str, str]] = ()
) -> tuple[Project, ProjectRole]:
    row = session.scalar(select(Project).where(Project.name == name))
    themselves = [{"username": caller.name, "project_role": ProjectRole.USER}]
    if row is not None and row.is_public and [dict(each) for each in joining] == themselves:
        return row, access.role_in(session, caller, row) or ProjectRole.USER
    row = access.project(session, caller, name, ProjectRole.MANAGER)
    role = access.role_in(session, caller, row)
    assert role is not None
    return row, role


def _roles(
    session: Session, members: Sequence[Mapping[str, str]]
) -> list[tuple[User, ProjectRole]]:
    return [
        (_user(session, each["username"]), ProjectRole(each["project_role"])) for each in members
    ]


def _check_may_give(
    session: Session,
    row: Project,
    role: ProjectRole,
    user: User,
    wished: ProjectRole,
    caller: Caller,
) -> None:
    is_joining = role is ProjectRole.USER and user.name == caller.name
    if ProjectRole.ADMIN in (wished, directory.role_in(session, row, user)) and (
        role is not ProjectRole.ADMIN
    ):
        raise refusals.denied()
    if role is ProjectRole.USER and not (is_joining and wished is ProjectRole.USER):
        raise refusals.denied()


def _check_may_take(session: Session, row: Project, role: ProjectRole, user: User) -> None:
    is_admin = directory.role_in(session, row, user) is ProjectRole.ADMIN
    if is_admin and role is not ProjectRole.ADMIN:
        raise refusals.denied()


def _take(session: Session, row: Project, user: User) -> None:
    try:
        directory.remove_member(session, row, user)
    except NotFound as error:
        raise refusals.missing(error.message.removesuffix(" not found")) from None
    except CasemateError as error:
        raise Invalid(error.message) from None


def _tell_member(session: Session, row: Project, user: User, what: str, caller: Caller) -> None:
    timeline.tell(
        session, f"User {what} project", timeline.of_project(row), timeline.of_user(user), by=caller
    )
