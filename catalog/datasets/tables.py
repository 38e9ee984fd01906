"""Tables of datasets."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from catalog.db import Base, Json
from catalog.tenancy import Tenanted


class DatasetRow(Tenanted, Base):
    """Samples that were uploaded, for calibration or evaluation."""

    __tablename__ = "datasets"
    __table_args__ = (Index("ix_datasets_tenant", "tenant", "id"), Index("ix_datasets_sha256", "sha256"))

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(16))
    images: Mapped[Json | None]
    """`compression.data_spec.ImagePreprocessing`, for an archive of pictures."""
    sha256: Mapped[str] = mapped_column(String(64))
    size: Mapped[int] = mapped_column(BigInteger)
    summary: Mapped[Json | None]
    """`compression.signature.DatasetSummary`, once inspected."""
    error: Mapped[Json | None]
    """`{code, message}`, when rejected."""
    created_at: Mapped[float]
