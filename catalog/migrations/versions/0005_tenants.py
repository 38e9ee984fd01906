"""Tenants, their API keys, and the audit log. What is there already belongs to the tenant `default`."""

from __future__ import annotations

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

_OWNED = ("datasets", "models", "uploads", "webhooks", "jobs")
_KEYED = {"idempotency_keys": "pk_idempotency_keys", "step_cache": "pk_step_cache"}
_INDEXES = {
    "datasets": ("tenant", "id"),
    "models": ("tenant", "id"),
    "webhooks": ("tenant", "id"),
    "jobs": ("tenant", "kind", "id"),
}


def _tenant() -> sa.Column[str]:
    return sa.Column("tenant", sa.String(length=40), nullable=False, server_default="default")


def upgrade() -> None:
    for table in _OWNED:
        # Not in a batch: copying a table on SQLite would drop the rows below it.
        op.add_column(table, _tenant())
    for table, columns in _INDEXES.items():
        op.create_index(f"ix_{table}_tenant", table, list(columns))
    for table, name in _KEYED.items():
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.add_column(_tenant())
            batch_op.drop_constraint(name, type_="primary")
            batch_op.create_primary_key(name, ["tenant", "key"])
    op.create_table(
        "tenants",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_tenants")),
    )
    op.execute("INSERT INTO tenants (id, created_at) VALUES ('default', 0)")
    op.create_table(
        "api_keys",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("name", sa.String(length=255), nullable=False),
        sa.Column("prefix", sa.String(length=16), nullable=False),
        sa.Column("sha256", sa.String(length=64), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.Double(), nullable=False),
        sa.Column("expires_at", sa.Double(), nullable=True),
        sa.Column("revoked_at", sa.Double(), nullable=True),
        sa.Column("replaced_by", sa.String(length=40), nullable=True),
        sa.Column("last_used_at", sa.Double(), nullable=True),
        _tenant(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_keys")),
    )
    op.create_index("ix_api_keys_prefix", "api_keys", ["prefix"], unique=True)
    op.create_index("ix_api_keys_tenant", "api_keys", ["tenant", "id"])
    op.create_table(
        "audit_log",
        sa.Column("id", sa.String(length=40), nullable=False),
        sa.Column("at", sa.Double(), nullable=False),
        sa.Column("actor", sa.String(length=40), nullable=False),
        sa.Column("action", sa.String(length=40), nullable=False),
        sa.Column("subject", sa.String(length=40), nullable=False),
        sa.Column("request_id", sa.String(length=64), nullable=False),
        _tenant(),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_log")),
    )
    op.create_index("ix_audit_log_tenant", "audit_log", ["tenant", "id"])


def downgrade() -> None:
    op.drop_table("audit_log")
    op.drop_table("api_keys")
    op.drop_table("tenants")
    for table, name in _KEYED.items():
        # Keys that several tenants chose cannot be told apart any more.
        op.execute(f"DELETE FROM {table} WHERE tenant <> 'default'")  # noqa: S608 - names from above
        with op.batch_alter_table(table, schema=None) as batch_op:
            batch_op.drop_constraint(name, type_="primary")
            batch_op.create_primary_key(name, ["key"])
            batch_op.drop_column("tenant")
    for table in _INDEXES:
        op.drop_index(f"ix_{table}_tenant", table)
    for table in _OWNED:
        op.drop_column(table, "tenant")
