"""A backup of a service at work, restored to a new place, which then serves the same bytes."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import threading
from contextlib import ExitStack
from pathlib import Path

import pytest

from catalog.__main__ import main
from catalog.settings import Settings
from catalog.storage.copies import key_of
from tests.api.conftest import own_database
from tests.api.harness import serve


@pytest.fixture(params=["sqlite", "postgresql"])
def new_place(request, tmp_path):
    """Settings of a service that has nothing yet, as often as asked."""
    number = itertools.count()
    with ExitStack() as databases:

        def make():
            folder = tmp_path / f"place-{next(number)}"
            if request.param == "sqlite":
                return Settings(data_dir=folder)
            url = databases.enter_context(own_database(request.getfixturevalue("postgresql_url")))
            return Settings(data_dir=folder, database_url=url)

        yield make


@pytest.fixture
def operate(monkeypatch, capsys):
    """`python -m catalog …` at a place; the status and what it said."""

    def call(place, *arguments):
        monkeypatch.setenv("LEVITY_DATA_DIR", str(place.data_dir))
        monkeypatch.setenv("LEVITY_DATABASE_URL", place.database_url)
        monkeypatch.setenv("LEVITY_COLLECT_GRACE_SECONDS", str(place.collect_grace_seconds))
        status = main([str(argument) for argument in arguments])
        said = capsys.readouterr()
        return status, said.out + said.err

    return call


def published(service, number):
    job_id = service.job()
    content = b"artifact %d " % number * 1000
    service.publish(job_id, {}, {"model.onnx": (content, "application/octet-stream")})
    return job_id, content


def get(service, job_id):
    return service.http.get(f"/v1/jobs/{job_id}/artifacts/model.onnx").raise_for_status().content


def test_a_backup_under_load_is_whole(new_place, operate, tmp_path):
    first, second = new_place(), new_place()
    folder = tmp_path / "backup"
    over = threading.Event()
    kept = {}
    with serve(first) as service:
        for number in range(5):
            job_id, content = published(service, number)
            kept[job_id] = content

        def load():
            for number in itertools.count(1000):
                if over.is_set():
                    return
                job_id, content = published(service, number)
                if number % 2:
                    service.http.delete(f"/v1/jobs/{job_id}").raise_for_status()
                else:
                    later[job_id] = content

        later = {}
        thread = threading.Thread(target=load)
        thread.start()
        while len(later) < 3:
            over.wait(0.05)
        status, said = operate(first, "backup", folder)
        over.set()
        thread.join(60)
    assert status == 0, said
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["missing"] == manifest["corrupt"] == []
    assert f"The backup holds {manifest['blobs']} blobs with {manifest['bytes']:,} bytes." in said

    status, said = operate(second, "restore", folder)
    assert status == 0, said
    status, said = operate(second, "verify")
    assert status == 0, said
    with serve(second) as service:
        assert {job_id: get(service, job_id) for job_id in kept} == kept
        jobs = service.http.get("/v1/jobs?limit=100").json()["items"]
        more = {job["id"] for job in jobs if job["state"] == "succeeded"} - set(kept)
        assert all(get(service, job_id).startswith(b"artifact 1") for job_id in more)
        # It goes on: new jobs, and the same bytes under another name. What the backup caught queued waits before them.
        for job in jobs:
            if job["state"] == "queued":
                service.http.post(f"/v1/jobs/{job['id']}/cancel").raise_for_status()
        job_id, content = published(service, 0)
        assert get(service, job_id) == content


def test_a_second_backup_copies_only_what_is_new(new_place, operate, tmp_path):
    place, folder = new_place(), tmp_path / "backup"
    with serve(place) as service:
        first, _ = published(service, 1)
        assert operate(place, "backup", folder)[0] == 0
        before = {path: path.stat().st_mtime_ns for path in (folder / "blobs").rglob("*") if path.is_file()}
        published(service, 2)
        service.http.delete(f"/v1/jobs/{first}").raise_for_status()
        assert operate(place, "backup", folder)[0] == 0
    after = {path: path.stat().st_mtime_ns for path in (folder / "blobs").rglob("*") if path.is_file()}
    assert before.items() <= after.items()
    assert len(after) == len(before) + 1
    other = new_place()
    assert operate(other, "restore", folder)[0] == 0
    assert operate(other, "verify")[0] == 0
    assert operate(other, "collect")[0] == 0


def test_what_is_missing_or_wrong_is_named(new_place, operate, tmp_path):
    place, folder = new_place(), tmp_path / "backup"
    with serve(place) as service:
        digests = [hashlib.sha256(published(service, number)[1]).hexdigest() for number in range(3)]
        root = place.root / "blobs"
        (root / key_of(digests[0], 0)).unlink()
        path = root / key_of(digests[1], 0)
        path.chmod(0o600)
        path.write_bytes(path.read_bytes()[:-1] + b"!")
    found = [f"missing {digests[0]}", f"corrupt {digests[1]}"]
    status, said = operate(place, "verify")
    assert status == 1
    assert said.splitlines()[:2] == found
    assert "1 blobs are missing, 1 are corrupt." in said
    status, said = operate(place, "verify", "--quick")
    assert status == 1
    assert digests[1] not in said
    status, said = operate(place, "backup", folder)
    assert status == 1
    assert said.splitlines()[:2] == found
    assert not (folder / "blobs" / key_of(digests[1], 0)).exists()
    # What there is can be restored, and what is not is named again.
    other = new_place()
    status, said = operate(other, "restore", folder)
    assert status == 1
    assert sorted(said.splitlines()[:2]) == sorted(f"missing {sha256}" for sha256 in digests[:2])
    with serve(other) as service:
        assert service.http.get("/readyz").status_code == 200


def test_only_an_empty_database_is_filled_and_only_from_a_whole_backup_of_its_kind(new_place, operate, tmp_path):
    place, folder = new_place(), tmp_path / "backup"
    assert operate(place, "tenants", "create", "acme")[0] == 0
    assert operate(place, "backup", folder)[0] == 0
    status, said = operate(place, "restore", folder)
    assert status == 1
    assert "not empty" in said
    manifest = folder / "manifest.json"
    good = json.loads(manifest.read_text())
    other = new_place()
    for content, message in (
        ({**good, "form": 99}, "form 99"),
        ({**good, "database": "other" if good["database"] == "levity.db" else "levity.db"}, "kind"),
    ):
        manifest.write_text(json.dumps(content))
        status, said = operate(other, "restore", folder)
        assert (status, message in said) == (1, True), said
    manifest.unlink()
    status, said = operate(other, "restore", folder)
    assert status == 1
    assert "no whole backup" in said
    manifest.write_text(json.dumps(good))
    assert operate(other, "restore", folder)[0] == 0
    assert "acme" in operate(other, "tenants", "list")[1].split()


def test_a_password_is_not_shown_to_the_list_of_processes(monkeypatch, tmp_path):
    from catalog.db import Database
    from catalog.storage import backup

    seen = {}

    def run(command, **options):
        seen.update(command=command, environment=options["env"])

    monkeypatch.setattr("subprocess.run", run)
    backup._load(Database("postgresql+psycopg://me:geheim@db.example:6432/levity?sslmode=require"), Path("dump"))
    assert "geheim" not in " ".join(seen["command"])
    expected = {"PGHOST": "db.example", "PGPORT": "6432", "PGUSER": "me", "PGPASSWORD": "geheim"}
    expected["PGSSLMODE"] = "require"
    assert {name: seen["environment"][name] for name in expected} == expected
    assert set(os.environ) <= set(seen["environment"])
