"""What the SecretVM interface keeps beside the VMs: flags of its VMs, seen signatures, calls, prices, balances."""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Float, ForeignKey, Index, LargeBinary, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from models.base import Base


class SecretVm(Base):
    """What a VM was asked to be through this interface and its own row does not say."""

    __tablename__ = "secret_vms"

    vm_id: Mapped[str] = mapped_column(ForeignKey("vms.id", ondelete="CASCADE"), primary_key=True)
    # The name its maker gave; the VM's own is unique on the host.
    name: Mapped[str] = mapped_column(String(60))
    vm_type: Mapped[str] = mapped_column(String(64))
    domain: Mapped[str] = mapped_column(Text)
    # The flags as they were given (secretvm/schemas.py, Flags).
    flags: Mapped[dict[str, Any]] = mapped_column(JSON)
    # EIP-8004 registration, as it was given.
    registration: Mapped[dict[str, Any] | None] = mapped_column(JSON)
    cluster_id: Mapped[str | None] = mapped_column(String(36), index=True)
    cluster_name: Mapped[str | None] = mapped_column(String(60))
    # When its guest gave a quote last.
    quoted_ms: Mapped[int | None]
    # Up to when its running time was paid for.
    paid_ms: Mapped[int | None]


class SeenSignature(Base):
    """The hash of a signed request that was let in; it is let in once."""

    __tablename__ = "seen_signatures"

    digest: Mapped[bytes] = mapped_column(LargeBinary(32), primary_key=True)
    seen_ms: Mapped[int] = mapped_column(index=True)


class CountedCall(Base):
    """A call that is limited in number, by the digest of who made it; kept as long as it counts."""

    __tablename__ = "counted_calls"
    __table_args__ = (Index(None, "caller", "at_ms"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    caller: Mapped[bytes] = mapped_column(LargeBinary(32))
    at_ms: Mapped[int]


class CoinPrice(Base):
    """A price of a coin in USD since a moment."""

    __tablename__ = "coin_prices"
    __table_args__ = (Index(None, "symbol", "at_ms"),)

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=True)
    symbol: Mapped[str] = mapped_column(String(16))
    price_usd: Mapped[float] = mapped_column(Float)
    source: Mapped[str] = mapped_column(Text)
    at_ms: Mapped[int]


class Balance(Base):
    """What a project has left to spend, in millionths of a US dollar."""

    __tablename__ = "balances"

    project_id: Mapped[str] = mapped_column(
        ForeignKey("projects.id", ondelete="CASCADE"), primary_key=True
    )
    minor: Mapped[int]
