"""A job's trace, what has been counted, and an index of jobs that have not ended."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0005"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("jobs", sa.Column("traceparent", sa.String(length=64), nullable=True))
    unfinished = sa.text("state IN ('queued', 'running')")
    op.create_index(
        "ix_jobs_unfinished",
        "jobs",
        ["state", "queue", "kind", "available_at"],
        postgresql_where=unfinished,
        sqlite_where=unfinished,
    )
    op.create_table(
        "totals",
        sa.Column("name", sa.String(length=64), nullable=False),
        sa.Column("labels", sa.String(length=255), nullable=False),
        sa.Column("value", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("name", "labels", name=op.f("pk_totals")),
    )


def downgrade() -> None:
    op.drop_table("totals")
    op.drop_index("ix_jobs_unfinished", "jobs")
    op.drop_column("jobs", "traceparent")
