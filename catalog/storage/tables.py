"""Tables of the store: which blobs it keeps, which copies are to be removed, and how far the collector is."""

from __future__ import annotations

from sqlalchemy import BigInteger, Boolean, ForeignKey, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from catalog.db import Base


class BlobRow(Base):
    """One digest, and the copy of its bytes that counts.

    A copy that was given up is never used again: bytes that come back get the next generation. So whoever still has to
    remove an old copy, however late, cannot hit a new one, and needs no lock over the store.
    """

    __tablename__ = "blobs"
    __table_args__ = (Index("ix_blobs_unused", "live", "unused_since"),)

    sha256: Mapped[str] = mapped_column(String(64), primary_key=True)
    generation: Mapped[int] = mapped_column(default=0)
    """Of the copy that is there, or of the next one when there is none."""
    live: Mapped[bool] = mapped_column(Boolean, default=True)
    """Whether the copy is there for all who name the digest."""
    size: Mapped[int | None] = mapped_column(BigInteger)
    stored_at: Mapped[float]
    """When the bytes last came in, whether they were there already or not; or when their removal was forgotten."""
    unused_since: Mapped[float | None]
    """When nothing was first found to name it."""


class RemovalRow(Base):
    """A copy that nobody will ask for again, to be removed from the store, and for a while the memory of it."""

    __tablename__ = "blob_removals"
    __table_args__ = (Index("ix_blob_removals_removed_at", "removed_at"),)

    sha256: Mapped[str] = mapped_column(ForeignKey("blobs.sha256"), primary_key=True)
    generation: Mapped[int] = mapped_column(primary_key=True)
    size: Mapped[int | None] = mapped_column(BigInteger)
    condemned_at: Mapped[float]
    removed_at: Mapped[float | None]


class CollectionRow(Base):
    """The collector's only row: when it is due, where it stands, what it saw last."""

    __tablename__ = "collection"

    id: Mapped[int] = mapped_column(primary_key=True)
    due_at: Mapped[float]
    finished_at: Mapped[float | None]
    """End of the last round."""
    census_next: Mapped[int] = mapped_column(default=0)
    """Number of the folder of the store that the census looks at next."""
    blobs: Mapped[int] = mapped_column(BigInteger, default=0)
    """What was in the store at the end of the last round."""
    bytes: Mapped[int] = mapped_column(BigInteger, default=0)
    unused_blobs: Mapped[int] = mapped_column(BigInteger, default=0)
    """Of it, what nothing named."""
    unused_bytes: Mapped[int] = mapped_column(BigInteger, default=0)
