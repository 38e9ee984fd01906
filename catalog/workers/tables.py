"""Tables of workers: who is there and what it can do."""

from __future__ import annotations

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from catalog.db import Base, Json


class WorkerRow(Base):
    """A worker process that has been seen."""

    __tablename__ = "workers"

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    host: Mapped[str] = mapped_column(String(255))
    queue: Mapped[str] = mapped_column(String(16))
    concurrency: Mapped[int]
    capabilities: Mapped[Json]
    """CPU flags, GPUs, sandbox level, library versions, limits."""
    started_at: Mapped[float]
    seen_at: Mapped[float]
