"""Tables of models: neural networks, as uploaded."""

from __future__ import annotations

from sqlalchemy import BigInteger, Index, String
from sqlalchemy.orm import Mapped, mapped_column

from catalog.db import Base, Json
from catalog.tenancy import Tenanted


class ModelRow(Tenanted, Base):
    """A neural network that was uploaded."""

    __tablename__ = "models"
    __table_args__ = (Index("ix_models_tenant", "tenant", "id"),)

    id: Mapped[str] = mapped_column(String(40), primary_key=True)
    name: Mapped[str] = mapped_column(String(255))
    state: Mapped[str] = mapped_column(String(16))
    files: Mapped[list[Json]]
    """`{name, sha256, size}` of each file, the graph first, then external data under the names that it refers to. For
    weights without a graph, the upload until it was inspected and the graph made from it afterwards."""
    source: Mapped[Json | None]
    """For weights without a graph, `{architecture, input, file}`: `compression.graph.architectures.spec.ModelSource`
    and the upload's `{name, sha256, size}`."""
    sha256: Mapped[str] = mapped_column(String(64))
    """Hash of the graph's file, or over all files where there are several."""
    size: Mapped[int] = mapped_column(BigInteger)
    summary: Mapped[Json | None]
    """`compression.signature.ModelSummary`, once inspected."""
    error: Mapped[Json | None]
    """`{code, message}`, when rejected."""
    created_at: Mapped[float]
