"""The tables that migrations make are the tables that the code describes."""

from __future__ import annotations

import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import create_engine, inspect, text

import catalog.schema  # noqa: F401 - fills the metadata
from catalog import db
from catalog.db import Base, Database, TablesBehind
from catalog.jobs.repository import Jobs
from catalog.jobs.step_cache import FinishedSteps
from catalog.tenancy import Actor


def differences(url):
    engine = create_engine(url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        with warnings.catch_warnings():
            # The index that claims follow is in descending order of priority; on SQLite it is not compared.
            warnings.filterwarnings("ignore", "autogenerate skipping metadata-specified expression-based index")
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


def migrate_to(database, revision):
    config = Config()
    config.set_main_option("script_location", str(Path(db.__file__).parent / "migrations"))
    with database._engine.begin() as connection:
        config.attributes["connection"] = connection
        move = command.downgrade if revision == "0004" and "0005" in applied(connection) else command.upgrade
        move(config, revision)


def applied(connection):
    if "alembic_version" not in inspect(connection).get_table_names():
        return []
    return list(connection.execute(text("SELECT version_num FROM alembic_version")).scalars())


JOB = """INSERT INTO jobs (id, kind, name, labels, spec, queue, priority, state, phase, progress, message, attempt,
attempts_left, max_attempts, available_at, cancel_requested, time_limit_seconds, created_at, last_event, request_id)
VALUES ('job_old', 'compress', '', '{}', '{}', 'cpu', 0, 'queued', '', 0, '', 0, 3, 3, 0, false, 60, 0, 1, '')"""
ROWS = (
    JOB,
    "INSERT INTO events (job_id, seq, at, type, attempt, data) VALUES ('job_old', 1, 0, 'queued', 0, '{}')",
    "INSERT INTO idempotency_keys (key, body_sha256, job_id, created_at) VALUES ('mine', 'b', 'job_old', 0)",
    "INSERT INTO step_cache (key, files, created_at, used_at) VALUES ('step', '[{\"name\": \"x\"}]', 0, 0)",
    """INSERT INTO uploads (id, state, filename, created_at) VALUES ('upl_old', 'open', '', 0)""",
    "INSERT INTO upload_parts (upload_id, number, size, sha256) VALUES ('upl_old', 1, 1, 'a')",
)


def test_what_was_there_before_tenants_belongs_to_the_default_one(database_url):
    database = Database(database_url)
    migrate_to(database, "0004")
    with database._engine.begin() as connection:
        for row in ROWS:
            connection.exec_driver_sql(row)
    database.migrate()
    for tenant, there in (("default", True), ("other", False)):
        with database.acting(Actor(tenant, "test")).read() as session:
            assert [row.id for row in Jobs(session).page(limit=9)] == ["job_old"] * there
            assert (Jobs(session).find_key("mine") is not None) == there
            assert bool(FinishedSteps(session, tenant).get("step")) == there
    with database.read() as session:
        assert [event.seq for event in Jobs(session).events("job_old")] == [1]
        assert session.execute(text("SELECT count(*) FROM upload_parts")).scalar() == 1
    migrate_to(database, "0004")
    with database._engine.begin() as connection:
        assert connection.execute(text("SELECT key FROM idempotency_keys")).scalars().all() == ["mine"]
    database.dispose()


def test_a_process_that_must_not_migrate_refuses_older_tables(database_url, caplog):
    database = Database(database_url)
    with pytest.raises(TablesBehind, match=r"at revision None.*python -m catalog migrate"):
        database.prepare(migrate=False)
    assert tables(database_url) == set()
    database.prepare(migrate=True)
    database.prepare(migrate=False)
    assert caplog.messages == []
    # As after the migrations of a release to come.
    with database._engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999_future'"))
    database.prepare(migrate=False)
    assert "newer release (9999_future)" in caplog.text
    first = min(path.name for path in (Path(db.__file__).parent / "migrations/versions").glob("0*.py"))
    with database._engine.begin() as connection:
        connection.execute(text(f"UPDATE alembic_version SET version_num = '{first[:4]}'"))
    with pytest.raises(TablesBehind, match="at revision 0001, this release needs"):
        database.prepare(migrate=False)
    database.dispose()
