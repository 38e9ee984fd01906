"""The table of what has been counted."""

from __future__ import annotations

from sqlalchemy import String
from sqlalchemy.orm import Mapped, mapped_column

from catalog.db import Base


class TotalRow(Base):
    """One number that only grows."""

    __tablename__ = "totals"

    name: Mapped[str] = mapped_column(String(64), primary_key=True)
    """Of the metric."""
    labels: Mapped[str] = mapped_column(String(255), primary_key=True)
    """Their values in order, as a JSON array; for a histogram and then the bucket's upper bound, or `sum`."""
    value: Mapped[float]
