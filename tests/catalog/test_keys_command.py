"""`python -m catalog`, with which an operator makes the first key."""

from __future__ import annotations

import re

import pytest

from catalog.__main__ import main
from catalog.db import Database
from catalog.keys.repository import find_principal


@pytest.fixture
def run(database_url, monkeypatch, capsys):
    monkeypatch.setenv("LEVITY_DATABASE_URL", database_url)

    def call(*arguments):
        status = main(arguments)
        return status, *capsys.readouterr()

    return call


def test_a_key_from_nothing_to_its_end(run, database_url):
    def opens(text):
        database = Database(database_url)
        with database.read() as session:
            found = find_principal(session, text)
        database.dispose()
        return found and (found[0].tenant, sorted(found[0].scopes))

    assert run("keys", "create", "--tenant", "acme") == (1, "", "There is no tenant acme.\n")
    assert run("tenants", "create", "acme")[0] == 0
    assert run("tenants", "create", "acme")[0] == 1
    assert run("tenants", "create", "No Such Name")[0] == 1
    assert run("tenants", "list")[1] == "acme  share=1\ndefault  share=1\n"

    _, text, told = run("keys", "create", "--tenant", "acme", "--name", "ci", "--scope", "read", "--days", "1")
    key_id = re.match(r"key_\w{32}", told)[0]
    assert opens(text.strip()) == ("acme", ["read"])
    assert run("keys", "rotate", key_id)[0] == 1, "the tenant default has no such key"
    _, second, _ = run("keys", "rotate", key_id, "--tenant", "acme", "--overlap-hours", "0")
    assert opens(text.strip()) is None
    assert opens(second.strip()) == ("acme", ["read"])
    listed = run("keys", "list", "--tenant", "acme")[1]
    assert len(listed.splitlines()) == 2
    assert second.strip() not in listed
    new_id = listed.split()[0]
    assert run("keys", "revoke", new_id, "--tenant", "acme")[0] == 0
    assert opens(second.strip()) is None
    assert run("keys", "list")[1] == ""


def test_migrate_is_the_one_command_that_needs_no_tables(run, monkeypatch):
    monkeypatch.setenv("LEVITY_MIGRATE", "false")
    status, _, told = run("keys", "list")
    assert (status, "python -m catalog migrate" in told) == (1, True)
    assert run("migrate") == (0, "The tables are up to date.\n", "")
    assert run("keys", "list")[0] == 0


def test_limits_of_a_tenant(run, capsys):
    assert run("tenants", "create", "acme", "--max-bytes", "1000", "--max-worker-minutes", "1.5")[0] == 0
    assert run("tenants", "list")[1] == "acme  share=1  max_bytes=1000  max_worker_minutes=1.5\ndefault  share=1\n"
    changed = run("tenants", "set", "acme", "--max-bytes", "none", "--share", "2.5", "--requests-per-minute", "600")
    assert changed[1] == "acme  share=2.5  max_worker_minutes=1.5  requests_per_minute=600\n"
    assert run("tenants", "set", "acme")[1] == changed[1]
    assert run("tenants", "set", "nobody", "--share", "2")[0] == 1
    for wrong in ("0", "-1", "inf", "nan", "many"):
        with pytest.raises(SystemExit):
            run("tenants", "set", "acme", "--share", wrong)
        assert "--share" in capsys.readouterr().err
