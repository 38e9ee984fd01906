"""The tables that migrations make are the tables that the code describes."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect

import catalog.schema  # noqa: F401 - fills the metadata
from catalog.db import Base, Database


def differences(url):
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        found = compare_metadata(context, Base.metadata)
    engine.dispose()
    return found


def tables(url):
    engine = create_engine(url)
    names = set(inspect(engine).get_table_names())
    engine.dispose()
    return names


def test_from_empty_to_what_the_code_describes(database_url):
    assert tables(database_url) == set()
    assert differences(database_url) != []
    database = Database(database_url)
    database.migrate()
    database.dispose()
    assert differences(database_url) == []
    assert tables(database_url) == {*Base.metadata.tables, "alembic_version"}


def test_migrating_again_changes_nothing(database_url):
    for _ in range(2):
        database = Database(database_url)
        database.migrate()
        database.dispose()
    assert differences(database_url) == []


def test_several_processes_may_migrate_at_once(database_url):
    databases = [Database(database_url) for _ in range(4)]
    with ThreadPoolExecutor(4) as threads:
        list(threads.map(Database.migrate, databases))
    for database in databases:
        database.dispose()
    assert differences(database_url) == []
