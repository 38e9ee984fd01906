"""`python -m catalog collect` and `verify`, as an operator calls them."""

from __future__ import annotations

import pytest
from sqlalchemy import text

from catalog.__main__ import main
from tests.catalog.storing import Store


@pytest.fixture
def run(database, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("LEVITY_DATABASE_URL", database.url)
    monkeypatch.setenv("LEVITY_DATA_DIR", str(tmp_path))
    monkeypatch.setenv("LEVITY_COLLECT_GRACE_SECONDS", "7200")

    def call(*arguments):
        status = main(arguments)
        return status, *capsys.readouterr()

    return call


def test_from_a_dry_run_to_an_empty_store(run, database, tmp_path):
    store = Store(database, tmp_path)
    store.name(store.put(b"needed"))
    store.put(b"not needed")
    status, said, _ = run("collect", "--dry-run")
    assert status == 0
    assert said.splitlines() == [
        "To forget: 0 uploads, 0 jobs, 0 Idempotency-Keys, 0 cached steps, 0 hours of use.",
        "In the store: 2 blobs with 16 bytes.",
        "Nothing names 1 blobs with 10 bytes of them.",
        "Past the grace period of 2 h are 0 blobs with 0 bytes.",
    ]
    for _ in range(2):
        assert run("collect")[1].startswith("Removed 0 blobs with 0 bytes.\n")
        store.age(7300)
    assert "Past the grace period of 2 h are 1 blobs with 10 bytes." in run("collect", "--dry-run")[1]
    assert len(store.files()) == 2
    status, said, _ = run("collect")
    assert status == 0
    assert said.splitlines()[:3] == [
        "Removed 1 blobs with 10 bytes.",
        "Forgot 0 uploads, 0 jobs, 0 Idempotency-Keys, 0 cached steps, 0 hours of use.",
        "In the store: 1 blobs with 6 bytes.",
    ]
    assert run("verify") == (0, "Sound are 1 blobs with 6 bytes.\n", "")
    assert run("verify", "--quick") == (0, "There are 1 blobs.\n", "")


def test_a_backup_before_an_upgrade_does_not_upgrade(run, database, tmp_path):
    with database._engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '0001'"))
    for command in (("backup", str(tmp_path / "b")), ("verify",), ("collect",)):
        status, _, told = run(*command)
        assert status == 1
        assert "at revision 0001" in told
    assert not (tmp_path / "b").exists()


def test_a_store_that_is_not_there(run, tmp_path, monkeypatch):
    monkeypatch.setenv("LEVITY_STORE_URL", "s3://levity/blobs")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ALLOW_HTTP", "true")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "x")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "x")
    monkeypatch.setattr("catalog.blobs._RETRY", {"max_retries": 0})
    assert run("collect") == (1, "", "The blob store does not answer; try again later.\n")
