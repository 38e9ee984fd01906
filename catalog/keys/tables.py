"""The table of API keys."""

from __future__ import annotations

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from catalog.db import Base
from catalog.tenancy import Tenanted


class ApiKeyRow(Tenanted, Base):
    """A key that callers of a tenant show."""

    __tablename__ = "api_keys"
    __table_args__ = (
        Index("ix_api_keys_prefix", "prefix", unique=True),
        Index("ix_api_keys_tenant", "tenant", "id"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    prefix: Mapped[str] = mapped_column(String(16))
    """The key's public part, by which it is found."""
    sha256: Mapped[str] = mapped_column(String(64))
    """Hash of the whole key, which itself is not kept."""
    scopes: Mapped[list[str]]
    created_at: Mapped[float]
    expires_at: Mapped[float | None]
    revoked_at: Mapped[float | None]
    replaced_by: Mapped[str | None] = mapped_column(String(40))
    """The key that a rotation made in its place."""
    last_used_at: Mapped[float | None]
    """Written every few minutes at most."""
