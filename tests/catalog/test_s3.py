"""What only an S3-compatible store has: multipart, credentials, and a network between."""

from __future__ import annotations

import hashlib
import os
import signal
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import obstore
import pytest

from catalog.blobs import CHUNK_BYTES, Blobs
from catalog.db import Database
from catalog.errors import NotFound, StoreUnavailable
from catalog.settings import Settings
from catalog.storage.backup import back_up, restore
from catalog.storage.copies import PartKey, key_of
from catalog.storage.verification import verify
from tests.api.harness import assert_problem, serve
from tests.catalog.storing import Store, digest
from tests.s3 import s3_server

MIB = 2**20


@pytest.fixture
def bucket(s3, monkeypatch):
    """The URL of an empty store on an S3 server that other tests use too."""
    for name, value in s3.environment.items():
        monkeypatch.setenv(name, value)
    return f"s3://{s3.new_bucket()}/a/prefix"


@pytest.fixture
def blobs(bucket, tmp_path):
    return Blobs(bucket, tmp_path / "staging")


def test_large_blobs_go_in_parts_and_come_out_in_ranges(blobs, monkeypatch):
    content = os.urandom(21 * MIB + 17)
    sha256, size = blobs.take_in(iter([content]))
    assert size == len(content)
    stored = obstore.head(blobs._store, key_of(sha256, 0))
    # An ETag of a multipart upload ends in the number of its parts.
    assert stored["e_tag"].strip('"').endswith("-5")
    assert stored["size"] == len(content)
    asked = []
    get_range = obstore.get_range

    def watch(store, key, *, start, end):
        asked.append((start, end))
        return get_range(store, key, start=start, end=end)

    monkeypatch.setattr("obstore.get_range", watch)
    start, end = 5 * MIB - 3, 5 * MIB + CHUNK_BYTES + 9
    assert b"".join(blobs.read(sha256, start, end)) == content[start:end]
    assert asked == [(start, start + CHUNK_BYTES), (start + CHUNK_BYTES, end)], "nothing but what was asked for"
    asked.clear()
    assert hashlib.sha256(b"".join(blobs.read(sha256))).hexdigest() == sha256
    assert len(asked) == 6


def test_a_small_blob_goes_in_one_request(blobs):
    sha256, _ = blobs.take_in(iter([b"small"]))
    assert "-" not in obstore.head(blobs._store, key_of(sha256, 0))["e_tag"]


def test_large_parts_of_an_upload(blobs):
    parts = [os.urandom(7 * MIB), os.urandom(3)]
    for number, part in enumerate(parts, start=1):
        staged = blobs.new_staging_path()
        staged.write_bytes(part)
        blobs.put_part(PartKey("upl_1", number, digest(part)), staged)
    assert blobs.uploads_with_parts() == ["upl_1"]
    keys = [PartKey("upl_1", number, digest(part)) for number, part in enumerate(parts, start=1)]
    assert blobs.assemble(keys, expected_sha256=digest(b"".join(parts)))[1] == 7 * MIB + 3
    blobs.drop_parts("upl_1")
    assert blobs.uploads_with_parts() == []


def test_two_prefixes_of_one_bucket_are_two_stores(bucket, tmp_path):
    one, other = Blobs(bucket, tmp_path / "staging"), Blobs(bucket + "2", tmp_path / "staging")
    sha256, _ = one.take_in(iter([b"x"]))
    assert not other.exists(sha256)
    assert [copy.sha256 for _, batch in one.copies() for copy in batch] == [sha256]
    assert list(other.copies()) == []


def test_the_collector(database, bucket, tmp_path):
    """As on files: `test_collection` has the rest, which is the same code."""
    store = Store(database, tmp_path, url=bucket)
    needed, other = store.put(b"needed"), store.put(os.urandom(6 * MIB))
    unknown = store.blobs.new_staging_path()
    unknown.write_bytes(b"nobody noted it")
    store.blobs._put(unknown, key_of(digest(b"nobody noted it"), 0))
    row_id = store.name(needed, "model")
    store.settle()
    assert store.whole(needed) == b"needed"
    assert not store.blobs.exists(other)
    assert not store.blobs.exists(digest(b"nobody noted it"))
    store.unname(row_id, "model")
    store.settle()
    assert list(store.blobs.copies()) == []
    store.put(b"needed")
    store.name(needed)
    store.settle()
    assert store.whole(needed) == b"needed"
    ((folder, copies),) = store.blobs.copies()
    assert folder == 0
    assert [copy.key for copy in copies] == [key_of(needed, 1)]


def test_backup_and_restore_between_stores(bucket, tmp_path):
    database = Database(f"sqlite:///{tmp_path}/levity.db")
    database.migrate()
    store = Store(database, tmp_path / "one", url=bucket)
    sha256 = store.put(b"bytes")
    store.name(sha256)
    assert back_up(database, store.blobs, tmp_path / "backup").sound
    other = Database(f"sqlite:///{tmp_path}/other.db")
    elsewhere = Blobs(bucket + "-restored", tmp_path / "staging")
    assert restore(other, elsewhere, tmp_path / "backup").sound
    assert verify(other, elsewhere).blobs == 1
    assert b"".join(elsewhere.read(sha256)) == b"bytes"
    for one in (database, other):
        one.dispose()


# Credentials


@contextmanager
def refusing(status):
    """A server that answers everything with one status; what it was asked with."""
    seen = []

    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            seen.append((self.path, dict(self.headers)))
            self.send_response(status)
            self.send_header("content-length", "0")
            self.end_headers()

        do_GET = do_HEAD = do_PUT = do_DELETE = answer  # noqa: N815 - http.server's names

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", seen
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def test_credentials_come_from_the_environment_or_from_settings(monkeypatch, tmp_path):
    with refusing(403) as (endpoint, seen):
        for name, value in {
            "AWS_ENDPOINT_URL": endpoint,
            "AWS_ALLOW_HTTP": "true",
            "AWS_ACCESS_KEY_ID": "KEYOFENV",
            "AWS_SECRET_ACCESS_KEY": "geheim",
            "AWS_SESSION_TOKEN": "session",
            "AWS_REGION": "eu-north-1",
        }.items():
            monkeypatch.setenv(name, value)
        for blobs, key in (
            (Blobs("s3://bucket/prefix", tmp_path), "KEYOFENV"),
            (
                Blobs(
                    "s3://bucket/prefix",
                    tmp_path,
                    credentials={"access_key_id": "KEYOFFILE", "secret_access_key": "x"},
                ),
                "KEYOFFILE",
            ),
        ):
            seen.clear()
            with pytest.raises(StoreUnavailable) as error:
                blobs.exists("a" * 64)
            path, headers = seen[0]
            assert path.startswith("/bucket/prefix/sha256/aa/aa/")
            assert f"Credential={key}/" in headers["authorization"]
            assert "/eu-north-1/s3/" in headers["authorization"]
            assert "geheim" not in f"{headers} {error.value}"


def test_plain_http_must_be_allowed(monkeypatch, tmp_path):
    with refusing(200) as (endpoint, seen):
        monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
        monkeypatch.delenv("AWS_ALLOW_HTTP", raising=False)
        with pytest.raises(StoreUnavailable):
            Blobs("s3://bucket/prefix", tmp_path).ping()
        assert seen == []


# A store that goes away


def test_a_store_that_goes_away_and_comes_back(monkeypatch, tmp_path):
    monkeypatch.setattr("catalog.blobs._RETRY", {"max_retries": 1})
    with s3_server() as server:
        for name, value in server.environment.items():
            monkeypatch.setenv(name, value)
        settings = Settings(data_dir=tmp_path, store_url=f"s3://{server.new_bucket()}/blobs")
        with serve(settings) as service:
            job_id = service.job()
            service.publish(job_id, {}, {"model.onnx": (b"0123456789", "application/octet-stream")})
            path = f"/v1/jobs/{job_id}/artifacts/model.onnx"
            assert service.http.get(path).content == b"0123456789"
            part = service.http.get(path, headers={"range": "bytes=3-5"})
            assert (part.status_code, part.content) == (206, b"345")
            assert service.http.get("/readyz").json()["checks"]["store"] == "ok"

            server.process.send_signal(signal.SIGSTOP)
            try:
                began = time.monotonic()
                assert_problem(service.http.get("/readyz"), 503, "not_ready")
                assert time.monotonic() - began < 15, "a store that hangs must not hang the probe"
            finally:
                server.process.send_signal(signal.SIGCONT)
            _eventually(lambda: service.http.get("/readyz").status_code == 200)

            server.process.kill()
            _eventually(lambda: service.http.get("/readyz").status_code == 503)
            upload = service.http.post("/v1/uploads", json={}).raise_for_status().json()["id"]
            for response in (
                service.http.get(path),
                service.http.put(f"/v1/uploads/{upload}/content", content=b"bytes"),
            ):
                assert_problem(response, 503, "store_unavailable")
                assert response.headers["retry-after"] == "5"
            assert list(service.blobs.staging.iterdir()) == []

            # Another server at the same address, which has the bucket and none of the objects.
            with s3_server(port=server.port) as again:
                again.make_bucket(settings.store_url.split("/")[2])
                _eventually(lambda: service.http.get("/readyz").status_code == 200)
                assert_problem(service.http.get(path), 404, "artifact_not_found")
                service.http.put(f"/v1/uploads/{upload}/content", content=b"bytes").raise_for_status()
                assert b"".join(service.blobs.read(digest(b"bytes"))) == b"bytes"


def test_a_blob_that_vanishes_in_the_middle(blobs, monkeypatch):
    monkeypatch.setattr("catalog.blobs.CHUNK_BYTES", 4)
    sha256, _ = blobs.take_in(iter([b"0123456789"]))
    chunks = blobs.read(sha256)
    assert next(chunks) == b"0123"
    blobs.delete(sha256)
    with pytest.raises(NotFound):
        next(chunks)


def _eventually(condition, seconds=60):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
