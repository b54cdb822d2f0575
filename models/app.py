"""What the apps interface shows of VMs beside their rows: revisions, prepared deployments and updates, profiles."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, ForeignKey, Index, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, deferred, mapped_column

from models.base import Base


class Revision(Base):
    """What a VM boots from a moment on; stays when the VM is gone, as long as its app has another one."""

    __tablename__ = "revisions"
    __table_args__ = (Index(None, "app_id", "id"), Index(None, "vm_id", "id"))

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    key: Mapped[str] = mapped_column(String(24), unique=True)
    app_id: Mapped[str] = mapped_column(String(40))
    # No foreign key: of a VM that is gone it is still told which one it was.
    vm_id: Mapped[str] = mapped_column(String(64))
    vm_name: Mapped[str] = mapped_column(String(64))
    project_id: Mapped[str] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), index=True
    )
    user_id: Mapped[str | None] = mapped_column(
        ForeignKey("users.id", ondelete="SET NULL"), index=True
    )
    operation: Mapped[str] = mapped_column(String(32))
    trace_id: Mapped[str | None] = mapped_column(String(64))
    compose_hash: Mapped[str] = mapped_column(String(64))
    created_ms: Mapped[int]

    compose_file: Mapped[str] = deferred(mapped_column(Text, nullable=False))
    encrypted_env: Mapped[bytes] = deferred(mapped_column(LargeBinary, nullable=False))
    user_config: Mapped[str] = deferred(mapped_column(Text, nullable=False))


class CvmProfile(Base):
    """What a VM was asked to be through the apps interface and its own row does not say."""

    __tablename__ = "cvm_profiles"

    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), primary_key=True)
    kms: Mapped[str] = mapped_column(String(64))  # the slug of its entry in the configuration
    instance_type: Mapped[str | None] = mapped_column(String(64))
    listed: Mapped[bool]
    deployer: Mapped[str | None] = mapped_column(String(42))
    # The X25519 key that its variables are sealed to, hex.
    env_key: Mapped[str | None] = mapped_column(String(64))


class Provision(Base):
    """A deployment that was checked and promised, and is not made yet; or an update of a VM that waits for its hash.

    The second kind has `vm_id` and a token, and there is one for a VM at most.
    """

    __tablename__ = "provisions"
    __table_args__ = (Index(None, "project_id", "compose_hash"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    project_id: Mapped[str] = mapped_column(ForeignKey("projects.id", ondelete="CASCADE"))
    vm_id: Mapped[str | None] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), unique=True)
    token: Mapped[bytes | None] = mapped_column(LargeBinary(32))  # SHA-256 of what the client has
    # Promised to the client; None where the client names its contract.
    app_id: Mapped[str | None] = mapped_column(String(40))
    compose_hash: Mapped[str] = mapped_column(String(64))
    # The VM that a deployment became.  No foreign key: it waits again when that VM could not be started and is gone.
    taken_by: Mapped[str | None] = mapped_column(String(64))
    # What to make or change, as apps/schemas.py reads it.
    wanted: Mapped[dict[str, Any]] = mapped_column(JSON)
    created_ms: Mapped[int] = mapped_column(index=True)

    compose_file: Mapped[str] = deferred(mapped_column(Text, nullable=False))
