"""Tables of uploads."""

from __future__ import annotations

from sqlalchemy import BigInteger, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from catalog.db import Base
from catalog.tenancy import Tenanted


class UploadRow(Tenanted, Base):
    """Bytes on their way in."""

    __tablename__ = "uploads"
    __table_args__ = (Index("ix_uploads_sha256", "sha256"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    state: Mapped[str] = mapped_column(String(16))
    filename: Mapped[str] = mapped_column(String(255))
    declared_size: Mapped[int | None] = mapped_column(BigInteger)
    declared_sha256: Mapped[str | None] = mapped_column(String(64))
    size: Mapped[int | None] = mapped_column(BigInteger)
    """Bytes of the complete upload."""
    sha256: Mapped[str | None] = mapped_column(String(64))
    """Hash of the complete upload, which is also its name in the blob store."""
    created_at: Mapped[float]
    active_at: Mapped[float | None]
    """When something last arrived, or began to; null until then."""
    completed_at: Mapped[float | None]


class PartRow(Base):
    """One part of an upload, stored and checked."""

    __tablename__ = "upload_parts"

    upload_id: Mapped[str] = mapped_column(ForeignKey("uploads.id", ondelete="CASCADE"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    size: Mapped[int] = mapped_column(BigInteger)
    sha256: Mapped[str] = mapped_column(String(64))
