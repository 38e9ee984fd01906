"""The audit log's table."""

from __future__ import annotations

from sqlalchemy import Index, String
from sqlalchemy.orm import Mapped, mapped_column

from catalog.db import Base
from catalog.tenancy import Tenanted


class AuditRow(Tenanted, Base):
    """Something that somebody did. Rows are only ever added."""

    __tablename__ = "audit_log"
    __table_args__ = (Index("ix_audit_log_tenant", "tenant", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    at: Mapped[float]
    actor: Mapped[str] = mapped_column(String(255))
    """A key's id, or `local` without keys, or `operator` for who works on the database itself, or `oidc:` and whom a
    token names."""
    action: Mapped[str] = mapped_column(String(40))
    """Such as `job.created`."""
    subject: Mapped[str] = mapped_column(String(40))
    """Id of what it was done to."""
    request_id: Mapped[str] = mapped_column(String(64))
