"""Who may call: users, the digests of their tokens, projects with their members, ssh keys."""

from __future__ import annotations

import secrets

from sqlalchemy import ForeignKey, LargeBinary, String, Text, UniqueConstraint, false
from sqlalchemy.orm import Mapped, mapped_column, relationship

from models.base import Base

# The user and the project of every installation, made with the tables: whoever holds a token of the
# configuration is this user, and no start of the service has to look for them or race to make them.
ADMIN_ID = "00000000-0000-4000-8000-000000000001"
MAIN_ID = "00000000-0000-4000-8000-000000000002"


class User(Base):
    """Somebody with tokens; `role` takes the values of accounts/roles.py."""

    __tablename__ = "users"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(60), unique=True)
    role: Mapped[str] = mapped_column(String(8))
    email: Mapped[str | None] = mapped_column(Text)
    active: Mapped[bool]
    created_ms: Mapped[int]


class Project(Base):
    """What VMs and all made of them belong to."""

    __tablename__ = "projects"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    name: Mapped[str] = mapped_column(String(60), unique=True)
    owner_id: Mapped[str] = mapped_column(ForeignKey("users.id"), index=True)
    created_ms: Mapped[int]
    # What the ids of its apps are drawn from (vmm/app_ids.py).
    address: Mapped[bytes] = mapped_column(LargeBinary(20), default=lambda: secrets.token_bytes(20))
    next_nonce: Mapped[int] = mapped_column(default=0, server_default="0")
    is_public: Mapped[bool] = mapped_column(default=False, server_default=false())

    owner: Mapped[User] = relationship(lazy="joined", innerjoin=True)


class Member(Base):
    """A user's role in a project; a user's first project is the one with the lowest id."""

    __tablename__ = "members"
    __table_args__ = (UniqueConstraint("project_id", "user_id"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    role: Mapped[str] = mapped_column(String(8))

    user: Mapped[User] = relationship(lazy="joined", innerjoin=True)


class Token(Base):
    """A token by its digest; the token itself is shown once and kept nowhere."""

    __tablename__ = "tokens"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    digest: Mapped[bytes] = mapped_column(LargeBinary(32), unique=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    # Where it makes things; none: in its user's first project.
    project_id: Mapped[str | None] = mapped_column(
        ForeignKey("projects.id", ondelete="SET NULL"), index=True
    )
    name: Mapped[str] = mapped_column(Text)
    made_by: Mapped[str] = mapped_column(String(16))  # the surface that issued it
    created_ms: Mapped[int]
    used_ms: Mapped[int | None]  # to the hour
    expires_ms: Mapped[int | None]
    revoked_ms: Mapped[int | None]

    user: Mapped[User] = relationship(lazy="joined", innerjoin=True)
    project: Mapped[Project | None] = relationship()  # no call needs it, only lists do


class SshKey(Base):
    """A public key of a user; the private half, where the service made the pair, is encrypted."""

    __tablename__ = "ssh_keys"

    id: Mapped[str] = mapped_column(String(36), primary_key=True)
    user_id: Mapped[str] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"), index=True)
    name: Mapped[str] = mapped_column(Text)
    public_key: Mapped[str] = mapped_column(Text)
    private_key: Mapped[bytes | None] = mapped_column(LargeBinary)
    created_ms: Mapped[int]
