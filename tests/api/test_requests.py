"""What holds for every request."""

from __future__ import annotations

import json
import sqlite3

import psycopg
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sqlalchemy import text
from sqlalchemy.exc import OperationalError

from api import json_body
from api.errors import RequestError
from catalog.db import Database, out_of_room
from catalog.settings import Settings
from tests.api.harness import assert_problem, serve


def post(http, content, content_type="application/json"):
    return http.post("/v1/uploads", content=content, headers={"content-type": content_type} if content_type else None)


@pytest.mark.parametrize("given_id", ["abc-123", "A.b_c:9", "x" * 64])
def test_sane_request_ids_are_kept(http, given_id):
    assert http.get("/livez", headers={"x-request-id": given_id}).headers["x-request-id"] == given_id


@pytest.mark.parametrize("given_id", ["", "x" * 65, "a b", "<script>", "a\u00e9"])
def test_other_request_ids_are_replaced(http, given_id):
    made = http.get("/nowhere", headers={"x-request-id": given_id.encode("latin-1")})
    assert_problem(made, 404, "not_found")
    assert len(made.headers["x-request-id"]) == 32


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:8000", "127.0.0.1", "127.0.0.1:1", "[::1]", "[::1]:8000"])
def test_hosts_that_are_answered(http, host):
    assert http.get("/v1/steps", headers={"host": host}).status_code == 200


@pytest.mark.parametrize("host", ["evil.example", "localhost.evil.example", "127.0.0.1.nip.io:80", "[::2]", ""])
def test_other_hosts_are_not(http, host):
    assert_problem(http.get("/v1/steps", headers={"host": host}), 400, "host_not_allowed")
    assert http.get("/livez", headers={"host": host}).status_code == 200


def test_all_hosts(tmp_path):
    with serve(Settings(data_dir=tmp_path, allowed_hosts=("*",))) as service:
        assert service.http.get("/v1/steps", headers={"host": "any.example"}).status_code == 200


@pytest.mark.parametrize(
    "path", ["/", "/v1", "/v1/", "/v2/jobs", "/v1/jobs/", "/v1/uploads/x/y", "/%2e%2e/etc", "/%FF"]
)
def test_paths_that_lead_nowhere(http, path):
    assert_problem(http.get(path), 404, "not_found")


@pytest.mark.parametrize(("method", "path"), [("PUT", "/v1/jobs"), ("PATCH", "/v1/models/x"), ("TRACE", "/v1/steps")])
def test_methods_that_are_not_possible(http, method, path):
    response = http.request(method, path)
    assert_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"]


@pytest.mark.parametrize(
    "body",
    [
        b"{",
        b"nonsense",
        b'{"filename": "a" "size": 1}',
        b'{"size": NaN}',
        b'{"size": Infinity}',
        b'{"size": 1e999}',
        b'{"size": 9223372036854775808}',
        b'{"size": ' + b"9" * 5000 + b"}",
        b'{"filename": "\\u0000"}',
        b'{"filename": "\\ud800"}',
        b'{"\\udc00": 1}',
        b'{"filename": "\xff"}',
        b"[" * 100_000,
        b"\xef\xbb\xbf{}",
    ],
    ids=range(14),
)
def test_bodies_that_are_no_portable_json(http, body):
    assert_problem(post(http, body), 400, "malformed_json")


def test_escapes_that_are_fine(http):
    body = b'{"filename": "\\ud83d\\ude00 \\\\u0000 \\u00e9"}'
    assert post(http, body).json()["filename"] == "\U0001f600 \\u0000 \u00e9"


@pytest.mark.parametrize("body", [b"[]", b"null", b'"text"', b"5"])
def test_json_that_is_no_object(http, body):
    response = post(http, body)
    assert (response.status_code, response.json()["code"]) == (422, "invalid_request")


def test_no_body(http):
    assert_problem(post(http, b""), 422, "invalid_request", "")


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data; boundary=x", None, "application/xml"])
def test_other_media_types(http, content_type):
    assert_problem(post(http, b"{}", content_type), 415, "unsupported_media_type")


@pytest.mark.parametrize("content_type", ["application/json; charset=utf-8", "Application/JSON", "application/x+json"])
def test_json_media_types(http, content_type):
    assert post(http, b"{}", content_type).status_code == 201


def test_a_body_that_is_too_large(http):
    huge = b'{"filename": "' + b"x" * json_body.MAX_BODY_BYTES + b'"}'
    assert_problem(post(http, huge), 413, "body_too_large")
    assert_problem(post(http, iter([huge[:1000], huge[1000:]])), 413, "body_too_large")


def test_what_goes_wrong_inside_stays_inside(http, monkeypatch, caplog):
    def fail(*_args, **_kwargs):
        raise RuntimeError("password=hunter2")

    monkeypatch.setattr("api.capabilities.service.capabilities", fail)
    response = http.get("/v1/capabilities")
    problem = assert_problem(response, 500, "internal_error")
    assert "hunter2" not in response.text
    assert f"request {problem['request_id']}" in caplog.text
    assert "hunter2" in caplog.text


@pytest.mark.parametrize(
    ("orig", "status", "code"),
    [
        (sqlite3.OperationalError("database is locked"), 503, "database_away"),
        (psycopg.errors.AdminShutdown("terminating connection due to administrator command"), 503, "database_away"),
        (psycopg.errors.DiskFull("could not extend file"), 507, "store_full"),
    ],
)
def test_a_database_that_does_not_answer(http, monkeypatch, orig, status, code):
    """No defect of the service, and clients ask again on 503."""

    def fail(*_args, **_kwargs):
        raise OperationalError("SELECT 1", {}, orig)

    monkeypatch.setattr("api.capabilities.service.capabilities", fail)
    response = http.get("/v1/capabilities")
    assert_problem(response, status, code)
    assert response.headers.get("retry-after") == ("1" if status == 503 else None)


def test_what_sqlite_says_when_its_file_cannot_grow(tmp_path):
    database = Database(f"sqlite:///{tmp_path / 'full.db'}")
    with database.write() as session:
        session.execute(text("CREATE TABLE t (x TEXT)"))
        session.execute(text("PRAGMA max_page_count=2"))
    with pytest.raises(OperationalError) as caught, database.write() as session:
        session.execute(text("INSERT INTO t VALUES (:x)"), {"x": "x" * 100_000})
    assert out_of_room(caught.value)
    database.dispose()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=())),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_parsing_gives_what_was_meant_or_refuses(value):
    text = json.dumps(value)
    try:
        parsed = json_body.parse(text.encode())
    except RequestError:
        return
    assert json.loads(text) == parsed
    assert json.loads(json.dumps(parsed, allow_nan=False, ensure_ascii=False).encode()) == parsed


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(["filename", "size", "sha256", "other"]), JSON))
def test_no_body_is_a_server_error(shared_service, body):
    assert post(shared_service.http, json.dumps(body)).status_code in (201, 400, 413, 422)


@settings(max_examples=50, deadline=None)
@given(st.dictionaries(st.sampled_from(["model_id", "pipeline", "labels", "data", "name", "seed"]), JSON))
def test_no_job_is_a_server_error(shared_service, body):
    headers = {"content-type": "application/json"}
    response = shared_service.http.post("/v1/jobs", content=json.dumps(body), headers=headers)
    assert response.status_code in (400, 404, 422)
