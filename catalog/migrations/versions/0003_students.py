"""A job may name a second model, the student that learns from the first."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.add_column(sa.Column("student_id", sa.String(length=40), nullable=True))
        batch_op.create_index("ix_jobs_student_id", ["student_id"], unique=False)


def downgrade() -> None:
    with op.batch_alter_table("jobs", schema=None) as batch_op:
        batch_op.drop_index("ix_jobs_student_id")
        batch_op.drop_column("student_id")
