"""Tables of webhooks: who is told, what of, and how that went."""

from __future__ import annotations

from sqlalchemy import Boolean, ForeignKey, Index, String, Text
from sqlalchemy.orm import Mapped, mapped_column

from catalog.db import Base, Json
from catalog.tenancy import Tenanted


class WebhookRow(Tenanted, Base):
    """A receiver of events: of all jobs, or of the one job that named it."""

    __tablename__ = "webhooks"
    __table_args__ = (Index("ix_webhooks_job_id", "job_id"), Index("ix_webhooks_tenant", "tenant", "id"))

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    job_id: Mapped[str | None] = mapped_column(String(40))
    """The only job that it hears of. No foreign key: what is not delivered yet outlives the job's record."""
    url: Mapped[str] = mapped_column(String(2048))
    events: Mapped[list[str]]
    """`EventType`s that it hears of."""
    description: Mapped[str] = mapped_column(String(255), default="")
    enabled: Mapped[bool] = mapped_column(Boolean, default=True)
    disabled: Mapped[Json | None]
    """`{code, message, at}` while it is not enabled."""
    secret: Mapped[str] = mapped_column(String(128))
    """`whsec_` and base64. It signs, so it is kept as it is."""
    previous_secret: Mapped[str | None] = mapped_column(String(128))
    previous_secret_until: Mapped[float | None]
    """Until then the previous secret signs too."""
    failing_since: Mapped[float | None]
    """The first attempt that failed since the last one that did not."""
    created_at: Mapped[float]


class DeliveryRow(Base):
    """One event on its way to one webhook: the outbox. Written in the transaction of what it tells of."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_due", "state", "next_attempt_at"),
        Index("ix_webhook_deliveries_list", "webhook_id", "id"),
    )

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    """The header `webhook-id`: the same over all attempts."""
    webhook_id: Mapped[str] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    type: Mapped[str] = mapped_column(String(32))
    job_id: Mapped[str | None] = mapped_column(String(40))
    payload: Mapped[str] = mapped_column(Text)
    """The body, byte for byte what is signed."""
    lane: Mapped[str] = mapped_column(String(300))
    """Scheme, host and port: a receiver that is slow has a share of the senders, never all."""
    state: Mapped[str] = mapped_column(String(16))
    attempt: Mapped[int] = mapped_column(default=0)
    """Number of the current or last attempt: the fencing token of whoever sends."""
    attempts_left: Mapped[int]
    owner: Mapped[str | None] = mapped_column(String(80))
    lease_until: Mapped[float | None]
    next_attempt_at: Mapped[float | None]
    created_at: Mapped[float]
    finished_at: Mapped[float | None]


class DeliveryAttemptRow(Base):
    """One try at a delivery."""

    __tablename__ = "webhook_attempts"

    delivery_id: Mapped[str] = mapped_column(ForeignKey("webhook_deliveries.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    started_at: Mapped[float]
    duration_seconds: Mapped[float | None]
    """Null while it is under way, and when its worker was lost."""
    status: Mapped[int | None]
    """The HTTP status of the answer."""
    error: Mapped[Json | None]
    """`{code, message}` when it failed."""
    response: Mapped[str | None] = mapped_column(Text)
    """How the answer's body begins."""
