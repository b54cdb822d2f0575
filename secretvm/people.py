"""Keys, sessions and balances as this interface speaks of them, over accounts/directory.py."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from accounts import directory
from accounts.credentials import Credentials
from accounts.roles import Caller
from accounts.service import Accounts
from core.config import Config
from core.errors import Conflict, Forbidden, Invalid, NotFound, Unauthenticated
from models.account import Project, Token, User
from secretvm import billing
from secretvm.vm_object import iso

MADE_BY = "secretvm"
# A key has no end of its own; clients want a moment to come back at.
_NO_END = "9999-12-31T23:59:59.000Z"


@dataclass(frozen=True)
class People:
    """The accounts of one data directory."""

    accounts: Accounts
    config: Config

    def check_admin(self, caller: Caller) -> None:
        """Forbidden for whoever is no administrator."""
        if not caller.is_operator:
            raise Forbidden(f"this is for administrators, and {caller.name} is none")

    def add_key(
        self, caller: Caller, user: str, name: str = "", project: str = ""
    ) -> dict[str, Any]:
        """Makes a key of a user, who is made when new; its text is in this answer alone."""
        self.check_admin(caller)
        with self.accounts.database.writing() as session:
            owner = _user(session, user)
            place = _project(session, project) if project else None
            token, text = directory.add_token(
                session, owner, name=name, made_by=MADE_BY, project=place
            )
            told = self._told(session, token)
        return {**told, "key": text}

    def keys(self, caller: Caller) -> list[dict[str, Any]]:
        """The keys of this interface: all of them for an administrator, else the caller's."""
        with self.accounts.database.reading() as session:
            user = None if caller.is_operator else session.get(User, caller.user_id)
            found = directory.tokens_of(session, user)
            return [self._told(session, each) for each in _valid(found)]

    def delete_key(self, caller: Caller, key_id: str) -> None:
        """Ends a key; NotFound for one that the caller does not see."""
        if key_id not in {each["id"] for each in self.keys(caller)}:
            raise NotFound(f"there is no key {key_id[:64]}")
        with self.accounts.database.writing() as session:
            directory.revoke_token(session, key_id)

    def session(self, given: Credentials) -> dict[str, Any]:
        """The user of a valid key, {} of any other."""
        try:
            caller = self.accounts.authenticate(given)
        except Unauthenticated:
            return {}
        with self.accounts.database.reading() as session:
            user = session.get(User, caller.user_id)
            email = user.email if user else None
        told = {"sub": caller.user_id, "name": caller.name, "email": email}
        return {"user": told, "expires": _NO_END}

    def balance(self, caller: Caller) -> dict[str, str]:
        """What the project of the caller's new things has left."""
        project_id = self.accounts.home(caller)
        with self.accounts.database.reading() as session:
            project = session.get_one(Project, project_id)
            left = billing.balance(session, self.config, project_id)
        return {"project": project.name, "balance": str(left)}

    def set_balance(self, caller: Caller, project: str, balance: int) -> dict[str, str]:
        """Gives a project a balance."""
        self.check_admin(caller)
        with self.accounts.database.writing() as session:
            found = directory.project_named(session, project)
            billing.set_balance(session, found.id, balance)
        return {"project": project, "balance": str(balance)}

    def _told(self, session: Session, token: Token) -> dict[str, Any]:
        return {
            "id": token.id,
            "name": token.name,
            "user": token.user.name,
            "project": _place(session, token),
            "createdAt": iso(token.created_ms),
            "lastUsedAt": iso(token.used_ms) if token.used_ms else None,
        }


def _valid(found: Sequence[Token]) -> list[Token]:
    return [each for each in found if each.revoked_ms is None]


def _user(session: Session, name: str) -> User:
    try:
        return directory.user_named(session, name)
    except NotFound:
        pass
    try:
        return directory.add_user(session, name)
    except Conflict as error:
        raise Invalid.field("user", error.message) from None
    except Invalid as error:
        raise Invalid.field("user", error.message.removeprefix("name: ")) from None


def _project(session: Session, name: str) -> Project:
    try:
        return directory.project_named(session, name)
    except NotFound as error:
        # Nobody has a role in it.
        raise Invalid.field("project", error.message) from None


def _place(session: Session, token: Token) -> str | None:
    """The project that a key makes things in: its own, else its user's first."""
    if token.project is not None:
        return token.project.name
    first = directory.first_project(session, token.user)
    return first.name if first else None
