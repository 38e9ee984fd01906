"""Runs migrations on the connection that `catalog.db.Database.migrate` hands over."""

from __future__ import annotations

from alembic import context

import catalog.schema  # noqa: F401 - fills the metadata
from catalog.db import Base

connection = context.config.attributes["connection"]
context.configure(
    connection=connection,
    target_metadata=Base.metadata,
    render_as_batch=connection.dialect.name == "sqlite",
)
with context.begin_transaction():
    context.run_migrations()
