"""Tables of tenants and of what they use."""

from __future__ import annotations

from sqlalchemy import BigInteger, Integer, String
from sqlalchemy.orm import Mapped, mapped_column

from catalog.db import Base
from catalog.tenancy import Tenanted


class TenantRow(Base):
    """Who owns things. An operator makes them; callers cannot. A limit that is null does not exist."""

    __tablename__ = "tenants"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    """A short name that the operator chose."""
    created_at: Mapped[float]
    share: Mapped[float] = mapped_column(default=1.0, server_default="1")
    """Weight of the tenant where several want the same workers: one with 2 gets twice what one with 1 gets."""
    max_bytes: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes that its uploads, models, datasets and artifacts may have together."""
    max_queued_jobs: Mapped[int | None]
    """Jobs, inspections included, that may wait at once."""
    max_worker_seconds: Mapped[float | None]
    """Time of workers in `USAGE_WINDOW_SECONDS`."""
    requests_per_minute: Mapped[int | None]
    """Instead of `LEVITY_REQUESTS_PER_MINUTE`."""


class UsageRow(Tenanted, Base):
    """Time of workers that a tenant's attempts took, by the hour in which they ended. Deleting a job frees none."""

    __tablename__ = "usage"

    tenant: Mapped[str] = mapped_column(String(40), primary_key=True)
    hour: Mapped[int] = mapped_column(Integer, primary_key=True)
    """Hours since 1970."""
    queue: Mapped[str] = mapped_column(String(16), primary_key=True)
    seconds: Mapped[float]
    attempts: Mapped[int]
