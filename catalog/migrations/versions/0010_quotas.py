"""Limits of tenants, what they use, and the order in which jobs are claimed between them."""

from __future__ import annotations

from typing import Any

import sqlalchemy as sa
from alembic import op

revision = "0010"
down_revision = "0009"
branch_labels = None
depends_on = None

_LIMITS: dict[str, sa.types.TypeEngine[Any]] = {
    "max_bytes": sa.BigInteger(),
    "max_queued_jobs": sa.Integer(),
    "max_worker_seconds": sa.Double(),
    "requests_per_minute": sa.Integer(),
}


def upgrade() -> None:
    op.add_column("tenants", sa.Column("share", sa.Double(), nullable=False, server_default="1"))
    for name, kind in _LIMITS.items():
        op.add_column("tenants", sa.Column(name, kind, nullable=True))
    op.create_table(
        "usage",
        sa.Column("tenant", sa.String(length=40), nullable=False),
        sa.Column("hour", sa.Integer(), nullable=False),
        sa.Column("queue", sa.String(length=16), nullable=False),
        sa.Column("seconds", sa.Double(), nullable=False),
        sa.Column("attempts", sa.Integer(), nullable=False),
        sa.PrimaryKeyConstraint("tenant", "hour", "queue", name=op.f("pk_usage")),
    )
    op.drop_index("ix_jobs_claim", "jobs")
    op.create_index("ix_jobs_claim", "jobs", ["queue", "state", "tenant", sa.text("priority DESC"), "id"])
    with op.batch_alter_table("audit_log", schema=None) as batch_op:
        batch_op.alter_column("actor", existing_type=sa.String(length=40), type_=sa.String(length=255))


def downgrade() -> None:
    with op.batch_alter_table("audit_log", schema=None) as batch_op:
        batch_op.alter_column("actor", existing_type=sa.String(length=255), type_=sa.String(length=40))
    op.drop_index("ix_jobs_claim", "jobs")
    op.create_index("ix_jobs_claim", "jobs", ["queue", "state", "priority", "id"])
    op.drop_table("usage")
    for name in ("share", *_LIMITS):
        op.drop_column("tenants", name)
