"""Which model a cached step was made from, so that it goes with the model. Of earlier ones nobody knows it."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0010"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("step_cache", sa.Column("model_sha256", sa.String(length=64), nullable=True))
    op.create_index("ix_step_cache_model", "step_cache", ["tenant", "model_sha256"])


def downgrade() -> None:
    op.drop_index("ix_step_cache_model", "step_cache")
    op.drop_column("step_cache", "model_sha256")
