"""Every release's database, with rows in it, becomes this release's, and nothing in it changes."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import JSON, Boolean, Double, Float, Integer, MetaData, String, Text, create_engine, insert, select

import catalog.schema  # noqa: F401 - fills the metadata
from catalog import db
from catalog.db import Base, Database
from catalog.jobs.leases import Leases, NewArtifact
from catalog.jobs.repository import Jobs
from catalog.jobs.states import JobState, Queue
from catalog.jobs.step_cache import FinishedSteps
from catalog.models.repository import Models
from catalog.storage.copies import key_of
from catalog.uploads.repository import Uploads
from tests.catalog.storing import Store, digest

MIGRATIONS = Path(db.__file__).parent / "migrations"
ROWS = 3
TEXT = "Zwölf \N{SNOWMAN} 'quoted' \"twice\" \\ %s :x {}"


def config():
    made = Config()
    made.set_main_option("script_location", str(MIGRATIONS))
    return made


REVISIONS = sorted(script.revision for script in ScriptDirectory.from_config(config()).walk_revisions())


def upgrade(engine, revision):
    made = config()
    with engine.begin() as connection:
        made.attributes["connection"] = connection
        command.upgrade(made, revision)


@pytest.fixture
def engine(database_url):
    engine = create_engine(database_url)
    yield engine
    engine.dispose()


def reflect(engine):
    metadata = MetaData()
    with engine.connect() as connection:
        metadata.reflect(connection)
    return {name: table for name, table in metadata.tables.items() if name != "alembic_version"}, metadata


def value(column, number):
    """One that strains the column's type, different in every row."""
    kind = column.type
    if isinstance(kind, JSON):
        return {"text": TEXT, "number": 2**53 - number, "list": [number, None, 0.1], "deep": {"a": {"b": TEXT}}}
    if isinstance(kind, Boolean):
        return number % 2 == 0
    if isinstance(kind, (Double, Float)):
        return 1_700_000_000.123456 + number
    if isinstance(kind, Integer):
        return 2**31 - 1 - number if str(kind) == "INTEGER" else 2**62 + number
    if isinstance(kind, Text) and not kind.length:
        return TEXT * 100 + str(number)
    assert isinstance(kind, String), column
    return f"{number}{TEXT * 20}"[: kind.length]


def fill(engine):
    """Rows in every table: full ones, and one with nulls wherever they may be."""
    tables, metadata = reflect(engine)
    with engine.begin() as connection:
        for table in metadata.sorted_tables:
            if table.name not in tables:
                continue
            for number in range(ROWS):
                row = {}
                for column in table.columns:
                    if column.foreign_keys:
                        (key,) = column.foreign_keys
                        row[column.name] = value(key.column, number)
                    elif column.nullable and number == 0:
                        row[column.name] = None
                    else:
                        row[column.name] = value(column, number)
                connection.execute(insert(table).values(row))
    return tables


def contents(engine, tables):
    """All rows of the columns that `tables` had."""
    now, _ = reflect(engine)
    with engine.connect() as connection:
        return {
            name: sorted(
                json.dumps(list(row))
                for row in connection.execute(select(*(now[name].columns[c.name] for c in table.columns)))
            )
            for name, table in tables.items()
        }


@pytest.mark.parametrize("revision", REVISIONS)
def test_rows_of_every_release_survive(database_url, engine, revision):
    upgrade(engine, revision)
    tables = fill(engine)
    before = contents(engine, tables)
    assert all(len(rows) >= ROWS for rows in before.values())
    database = Database(database_url)
    database.migrate()
    assert contents(engine, tables) == before
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True, "compare_server_default": True})
        assert compare_metadata(context, Base.metadata) == [], "`alembic check`: the tables are those of the code"
    # Every row can be read as the code has it.
    with database.read() as session:
        for mapper in Base.registry.mappers:
            rows = session.scalars(select(mapper.class_)).all()
            assert mapper.local_table.name not in tables or len(rows) >= ROWS
    database.dispose()


OLD = ("a model", "a dataset", "an artifact", "a step", "an upload", "a part")
SHA256 = {content: digest(content.encode()) for content in OLD}


def old_service(engine):
    """What a service of the first release had: all columns of then, as it would have filled them."""
    tables, _ = reflect(engine)
    file = {"name": "model.onnx", "sha256": SHA256["a model"], "size": 7}
    job = {
        "kind": "compress",
        "name": "old",
        "labels": {"team": "a"},
        "model_id": "mdl_old",
        "spec": {"steps": [{"type": "prune", "amount": 0.5}]},
        "queue": "cpu",
        "priority": 0,
        "phase": "",
        "progress": 0.0,
        "message": "",
        "attempt": 0,
        "attempts_left": 3,
        "max_attempts": 3,
        "available_at": 1.0,
        "cancel_requested": False,
        "time_limit_seconds": 60.0,
        "created_at": 1.0,
        "last_event": 1,
        "request_id": "",
    }
    done = {"attempt": 1, "started_at": 1.0, "finished_at": 2.0, "result": {"steps": []}, "phase": "publishing"}
    running = {"attempt": 1, "attempts_left": 2, "owner": "wrk_gone", "lease_until": 5.0, "started_at": 1.0}
    rows = (
        (
            "models",
            {"id": "mdl_old", "name": "m", "state": "ready", "files": [file], "sha256": file["sha256"], "size": 7},
        ),
        ("datasets", {"id": "dts_old", "name": "d", "state": "ready", "sha256": SHA256["a dataset"], "size": 9}),
        ("uploads", {"id": "upl_done", "state": "complete", "filename": "f", "size": 9, "sha256": SHA256["an upload"]}),
        ("uploads", {"id": "upl_open", "state": "open", "filename": "f"}),
        ("upload_parts", {"upload_id": "upl_open", "number": 1, "size": 6, "sha256": SHA256["a part"]}),
        ("jobs", {**job, "id": "job_queued", "state": "queued"}),
        ("jobs", {**job, "id": "job_running", "state": "running", **running}),
        ("jobs", {**job, "id": "job_done", "state": "succeeded", **done}),
        ("job_datasets", {"job_id": "job_queued", "role": "calibration", "dataset_id": "dts_old"}),
        ("attempts", {"job_id": "job_running", "number": 1, "owner": "wrk_gone", "started_at": 1.0}),
        *(
            ("events", {"job_id": f"job_{name}", "seq": 1, "at": 1.0, "type": "queued", "attempt": 0, "data": {}})
            for name in ("queued", "running", "done")
        ),
        ("idempotency_keys", {"key": "mine", "body_sha256": "b" * 64, "job_id": "job_queued"}),
        (
            "artifacts",
            {
                "job_id": "job_done",
                "name": "model.onnx",
                "attempt": 1,
                "sha256": SHA256["an artifact"],
                "size": 11,
                "media_type": "application/octet-stream",
            },
        ),
        (
            "step_cache",
            {"key": "step", "files": [{"name": "model.onnx", "sha256": SHA256["a step"], "size": 6}], "used_at": 2e9},
        ),
    )
    with engine.begin() as connection:
        for name, row in rows:
            columns = tables[name].columns
            dated = {"created_at": 2e9, "completed_at": 2e9} if name != "jobs" else {}
            known = {key: content for key, content in {**dated, **row}.items() if key in columns}
            if row.get("state") == "open":
                known.pop("completed_at", None)
            connection.execute(insert(tables[name]).values(known))


@pytest.mark.parametrize("revision", REVISIONS)
def test_a_service_of_every_release_goes_on(database_url, engine, tmp_path, revision):
    upgrade(engine, revision)
    old_service(engine)
    database = Database(database_url)
    database.migrate()
    store = Store(database, tmp_path, upload_retention_seconds=3600)
    root = store.settings.root / "blobs"
    for content, sha256 in SHA256.items():
        if content != "a part":
            path = root / key_of(sha256, 0)
            path.parent.mkdir(parents=True)
            path.write_text(content)
    path = root / key_of(digest(b"unnamed"), 0)
    path.parent.mkdir(parents=True)
    path.write_text("unnamed")
    store.settle()
    assert {content: store.whole(sha256) for content, sha256 in SHA256.items() if content != "a part"} == {
        content: content.encode() for content in OLD if content != "a part"
    }
    assert not store.blobs.exists(digest(b"unnamed"))

    with database.write() as session:
        assert Leases(session).sweep() == {Queue.CPU}, "the worker of then is gone"
    with database.write() as session:
        claim, row = Leases(session).claim(Queue.CPU, owner="wrk_new", lease_seconds=60)
        assert (claim.job_id, claim.attempt, row.spec["steps"][0]["amount"]) == ("job_queued", 1, 0.5)
        assert Jobs(session).datasets("job_queued") == {"calibration": "dts_old"}
    new = store.put(b"new")
    with database.write() as session:
        artifact = NewArtifact("model.onnx", new, 3, "application/octet-stream")
        assert Leases(session).publish(claim, artifacts=[artifact], result={}) is JobState.SUCCEEDED
    with database.write() as session:
        claim, _ = Leases(session).claim(Queue.CPU, owner="wrk_new", lease_seconds=60)
        assert (claim.job_id, claim.attempt) == ("job_running", 2)
        jobs = Jobs(session)
        assert jobs.find_key("mine").job_id == "job_queued"
        assert jobs.artifact("job_done", "model.onnx").sha256 == SHA256["an artifact"]
        assert {row.id for row in jobs.page(limit=9)} == {"job_queued", "job_running", "job_done"}
        assert Models(session).get("mdl_old").files[0]["size"] == 7
        assert FinishedSteps(session, "default").get("step")[0]["sha256"] == SHA256["a step"]
        assert [part.number for part in Uploads(session).parts("upl_open")] == [1]
        assert Uploads(session).complete("upl_open", size=3, sha256=new).state == "complete"
    database.dispose()
