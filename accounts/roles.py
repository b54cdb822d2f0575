"""The roles a user can have on this host and in a project, and a caller as the surfaces see one (pure)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum

from models.account import ADMIN_ID, MAIN_ID


class GlobalRole(StrEnum):
    """On this host; an admin is an operator and sees every VM."""

    ADMIN = "admin"
    USER = "user"


class ProjectRole(StrEnum):
    """In one project, from the one who may do most to the one who may do least."""

    ADMIN = "admin"
    MANAGER = "manager"
    USER = "user"

    def covers(self, needed: ProjectRole) -> bool:
        """Whether whoever has this role may do what `needed` may do."""
        ranks = list(ProjectRole)
        return ranks.index(self) <= ranks.index(needed)


@dataclass(frozen=True)
class Caller:
    """Whoever makes a request; equal to another one as long as nothing about the account changed."""

    user_id: str
    name: str
    is_operator: bool
    # The project that the credential makes things in; None: the user's first.
    project_id: str | None
    # Of the credential, so that it can be looked up again: SHA-256, empty where none was needed.
    digest: bytes = field(default=b"", repr=False)


# Whoever reaches a service without authentication, or has one of the configuration's credentials.
OPERATOR = Caller(ADMIN_ID, "admin", True, MAIN_ID)
