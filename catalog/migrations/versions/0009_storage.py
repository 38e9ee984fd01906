"""The store's ledger and its collector. What is in the store already is entered by the collector's census."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

_NAMED = ("artifacts", "datasets", "uploads")


def _count(name: str) -> sa.Column[int]:
    return sa.Column(name, sa.BigInteger(), nullable=False)


def upgrade() -> None:
    op.create_table(
        "blobs",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("live", sa.Boolean(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("stored_at", sa.Double(), nullable=False),
        sa.Column("unused_since", sa.Double(), nullable=True),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_blobs")),
    )
    op.create_index("ix_blobs_unused", "blobs", ["live", "unused_since"])
    op.create_table(
        "blob_removals",
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("generation", sa.Integer(), nullable=False),
        sa.Column("size", sa.BigInteger(), nullable=True),
        sa.Column("condemned_at", sa.Double(), nullable=False),
        sa.Column("removed_at", sa.Double(), nullable=True),
        sa.ForeignKeyConstraint(["sha256"], ["blobs.sha256"], name=op.f("fk_blob_removals_sha256")),
        sa.PrimaryKeyConstraint("sha256", "generation", name=op.f("pk_blob_removals")),
    )
    op.create_index("ix_blob_removals_removed_at", "blob_removals", ["removed_at"])
    op.create_table(
        "collection",
        sa.Column("id", sa.Integer(), nullable=False),
        sa.Column("due_at", sa.Double(), nullable=False),
        sa.Column("finished_at", sa.Double(), nullable=True),
        sa.Column("census_next", sa.Integer(), nullable=False),
        *(_count(name) for name in ("blobs", "bytes", "unused_blobs", "unused_bytes")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_collection")),
    )
    op.add_column("uploads", sa.Column("active_at", sa.Double(), nullable=True))
    for table in _NAMED:
        op.create_index(f"ix_{table}_sha256", table, ["sha256"])


def downgrade() -> None:
    # Copies of later generations stay in the store, where the release before does not look for them.
    for table in _NAMED:
        op.drop_index(f"ix_{table}_sha256", table)
    op.drop_column("uploads", "active_at")
    op.drop_table("collection")
    op.drop_table("blob_removals")
    op.drop_table("blobs")
