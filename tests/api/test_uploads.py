from __future__ import annotations

import hashlib
import socket
import time

import httpx
import pytest

from api.uploads.schemas import Upload
from catalog.settings import Settings
from tests.api.harness import assert_problem, digest_field, serve

CONTENT = b"0123456789" * 1000
SHA256 = hashlib.sha256(CONTENT).hexdigest()


def create(http, **body):
    return http.post("/v1/uploads", json=body).raise_for_status().json()["id"]


def put(http, upload_id, content=CONTENT, **headers):
    return http.put(f"/v1/uploads/{upload_id}/content", content=content, headers=headers)


def put_part(http, upload_id, number, content, **headers):
    return http.put(f"/v1/uploads/{upload_id}/parts/{number}", content=content, headers=headers)


def complete(http, upload_id, **body):
    return http.post(f"/v1/uploads/{upload_id}/complete", json=body)


def state(http, upload_id):
    return http.get(f"/v1/uploads/{upload_id}").json()["state"]


def pieces(content, size=1000):
    yield from (content[start : start + size] for start in range(0, len(content), size))


def staged(service):
    return list(service.blobs.staging.iterdir())


def test_a_new_upload_is_open_and_says_where_it_is(http):
    response = http.post("/v1/uploads", json={"filename": "a.onnx", "size": 10, "sha256": SHA256})
    assert response.status_code == 201
    upload = response.json()
    Upload.model_validate(upload)
    assert response.headers["location"] == f"/v1/uploads/{upload['id']}"
    assert (upload["state"], upload["filename"], upload["size"], upload["received_bytes"]) == ("open", "a.onnx", 10, 0)
    assert http.get(response.headers["location"]).json() == upload


def test_content_at_once(service, http):
    upload_id = create(http, size=len(CONTENT), sha256=SHA256)
    response = put(http, upload_id, **{"content-digest": digest_field(CONTENT)})
    assert response.status_code == 200
    upload = response.json()
    Upload.model_validate(upload)
    assert (upload["state"], upload["size"], upload["sha256"]) == ("complete", len(CONTENT), SHA256)
    assert upload["received_bytes"] == len(CONTENT)
    assert upload["completed_at"] >= upload["created_at"]
    assert b"".join(service.blobs.read(SHA256)) == CONTENT
    head = http.head(f"/v1/uploads/{upload_id}")
    assert (head.headers["upload-offset"], head.headers["upload-complete"]) == (str(len(CONTENT)), "?1")
    assert head.headers["etag"] == f'"{SHA256}"'
    assert staged(service) == []


def test_content_of_unknown_length_and_many_blocks(service, http):
    content = bytes(range(256)) * 4 * 5000  # more than two blocks
    response = put(http, create(http), pieces(content, 70_001))
    assert response.json()["sha256"] == hashlib.sha256(content).hexdigest()
    assert b"".join(service.blobs.read(response.json()["sha256"])) == content


def test_empty_content(http):
    upload = put(http, create(http), b"").json()
    assert (upload["state"], upload["size"], upload["sha256"]) == ("complete", 0, hashlib.sha256(b"").hexdigest())


@pytest.mark.parametrize(
    ("announced", "headers", "code"),
    [
        ({"sha256": "0" * 64}, {}, "digest_mismatch"),
        ({}, {"content-digest": digest_field(b"other")}, "digest_mismatch"),
        ({"size": len(CONTENT) - 1}, {}, "size_mismatch"),
        ({"size": len(CONTENT) + 1}, {}, "size_mismatch"),
    ],
)
@pytest.mark.parametrize("body", [CONTENT, pytest.param(None, id="chunked")])
def test_content_that_is_not_what_was_announced_leaves_the_upload_open(service, announced, headers, code, body):
    http = service.http
    upload_id = create(http, **announced)
    assert_problem(put(http, upload_id, body or pieces(CONTENT), **headers), 422, code)
    assert state(http, upload_id) == "open"
    assert staged(service) == []


@pytest.mark.parametrize("value", ["sha-256=abc", "sha-256=:abc:", "sha-256=:YWJj:", "sha-256=:!!!!:"])
def test_a_digest_that_cannot_be_read(http, value):
    problem = put(http, create(http), **{"content-digest": value})
    assert_problem(problem, 422, "invalid_request", "/header/content-digest")


def test_other_digest_algorithms_are_left_alone(http):
    both = f"sha-512=:AAAA:, {digest_field(CONTENT)}"
    assert put(http, create(http), **{"content-digest": both}).status_code == 200
    assert put(http, create(http), **{"content-digest": "md5=:AAAA:"}).status_code == 200


def test_sending_again_is_harmless_with_the_same_bytes_only(http):
    upload_id = create(http)
    first = put(http, upload_id).json()
    assert put(http, upload_id).json() == first
    assert_problem(put(http, upload_id, b"other"), 409, "upload_complete")
    assert_problem(put(http, upload_id, b"x", **{"content-digest": digest_field(b"x")}), 409, "upload_complete")
    assert http.get(f"/v1/uploads/{upload_id}").json() == first


def test_parts_in_any_order(service, http):
    upload_id = create(http)
    parts = {1: b"first", 2: b"second", 3: b"third"}
    for number in (3, 1):
        part = put_part(http, upload_id, number, parts[number], **{"content-digest": digest_field(parts[number])})
        sha256 = hashlib.sha256(parts[number]).hexdigest()
        assert part.json() == {"number": number, "size": len(parts[number]), "sha256": sha256}
    head = http.head(f"/v1/uploads/{upload_id}")
    assert (head.headers["upload-offset"], head.headers["upload-complete"]) == ("5", "?0")
    assert "etag" not in head.headers
    missing = assert_problem(complete(http, upload_id), 409, "part_missing")
    assert "Part 2" in missing["detail"]
    assert put_part(http, upload_id, 2, b"wrong").status_code == 200
    assert put_part(http, upload_id, 2, parts[2]).status_code == 200
    assert [part["size"] for part in http.get(f"/v1/uploads/{upload_id}").json()["parts"]] == [5, 6, 5]
    whole = b"firstsecondthird"
    assert_problem(complete(http, upload_id, sha256="0" * 64), 422, "digest_mismatch")
    done = complete(http, upload_id, sha256=hashlib.sha256(whole).hexdigest(), parts=[1, 2, 3])
    assert done.status_code == 200
    assert (done.json()["state"], done.json()["size"], done.json()["parts"]) == ("complete", len(whole), [])
    assert b"".join(service.blobs.read(done.json()["sha256"])) == whole
    assert not (service.settings.root / "blobs" / "uploads" / upload_id).exists()


def test_completing_is_idempotent(http):
    upload_id = create(http)
    put_part(http, upload_id, 1, b"only")
    done = complete(http, upload_id).json()
    assert complete(http, upload_id).json() == done
    assert complete(http, upload_id, sha256=done["sha256"]).json() == done
    assert_problem(complete(http, upload_id, sha256="0" * 64), 409, "upload_complete")
    assert_problem(put_part(http, upload_id, 2, b"late"), 409, "upload_complete")


def test_completing_needs_no_body(http):
    upload_id = create(http)
    put_part(http, upload_id, 1, b"only")
    assert http.post(f"/v1/uploads/{upload_id}/complete").json()["state"] == "complete"


@pytest.mark.parametrize(
    ("announced", "body", "expected"),
    [
        ({}, {"parts": [2]}, (409, "part_missing")),
        ({}, {"parts": [1, 1]}, (422, "invalid_request", "/parts")),
        ({}, {"parts": []}, (422, "invalid_request", "/parts")),
        ({}, {"parts": [0]}, (422, "invalid_request", "/parts/0")),
        ({}, {"sha256": "A" * 64}, (422, "invalid_request", "/sha256")),
        ({"size": 5}, {}, (422, "size_mismatch")),
        ({"sha256": "0" * 64}, {}, (422, "digest_mismatch")),
        ({"sha256": "0" * 64}, {"sha256": "1" * 64}, (422, "digest_mismatch")),
    ],
)
def test_parts_that_do_not_make_the_whole(http, announced, body, expected):
    upload_id = create(http, **announced)
    put_part(http, upload_id, 1, b"four")
    assert_problem(complete(http, upload_id, **body), *expected)
    assert state(http, upload_id) == "open"


def test_no_part_at_all(http):
    assert_problem(complete(http, create(http)), 409, "part_missing")


def test_a_part_with_another_hash_is_not_kept(http):
    upload_id = create(http)
    assert_problem(put_part(http, upload_id, 1, b"x", **{"content-digest": digest_field(b"y")}), 422, "digest_mismatch")
    assert http.get(f"/v1/uploads/{upload_id}").json()["parts"] == []


@pytest.mark.parametrize("number", ["0", "10001", "-1", "one", "9" * 30])
def test_part_numbers_have_bounds(http, number):
    assert_problem(put_part(http, create(http), number, b"x"), 422, "invalid_request", "/path/number")


def test_deleting(service, http):
    upload_id = create(http)
    put_part(http, upload_id, 1, b"x")
    assert http.delete(f"/v1/uploads/{upload_id}").status_code == 204
    assert_problem(http.get(f"/v1/uploads/{upload_id}"), 404, "upload_not_found")
    assert not (service.settings.root / "blobs" / "uploads" / upload_id).exists()


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", ""),
        ("DELETE", ""),
        ("PUT", "/content"),
        ("PUT", "/parts/1"),
        ("POST", "/complete"),
    ],
)
@pytest.mark.parametrize("upload_id", ["upl_" + "0" * 32, "%00", "x" * 300, "%F0%9F%A6%8A"])
def test_unknown_uploads(http, method, path, upload_id):
    assert_problem(http.request(method, f"/v1/uploads/{upload_id}{path}"), 404, "upload_not_found")


@pytest.mark.parametrize(
    ("body", "pointer"),
    [
        ({"size": -1}, "/size"),
        ({"size": "many"}, "/size"),
        ({"sha256": "xyz"}, "/sha256"),
        ({"filename": "x" * 256}, "/filename"),
        ({"fielname": "x"}, "/fielname"),
    ],
)
def test_announcements_that_make_no_sense(http, body, pointer):
    assert_problem(http.post("/v1/uploads", json=body), 422, "invalid_request", pointer)


@pytest.fixture(scope="module")
def strict(tmp_path_factory):
    """A service that takes little and waits briefly."""
    settings = Settings(data_dir=tmp_path_factory.mktemp("strict"), max_upload_bytes=5000, upload_idle_seconds=0.3)
    with serve(settings) as service:
        yield service


def test_too_large(strict):
    http = strict.http
    assert_problem(http.post("/v1/uploads", json={"size": 5001}), 413, "upload_too_large")
    upload_id = create(http)
    assert_problem(put(http, upload_id), 413, "upload_too_large")
    assert_problem(put(http, upload_id, pieces(CONTENT)), 413, "upload_too_large")
    assert put_part(http, upload_id, 1, b"x" * 3000).status_code == 200
    assert_problem(put_part(http, upload_id, 2, b"x" * 2001), 413, "upload_too_large")
    assert put_part(http, upload_id, 1, b"x" * 2000).status_code == 200
    assert put_part(http, upload_id, 2, b"x" * 3000).status_code == 200
    assert staged(strict) == []


def raw_put(service, upload_id, length, sent):
    address = service.url.removeprefix("http://").split(":")
    connection = socket.create_connection((address[0], int(address[1])), timeout=10)
    head = f"PUT /v1/uploads/{upload_id}/content HTTP/1.1\r\nHost: localhost\r\nContent-Length: {length}\r\n\r\n"
    connection.sendall(head.encode() + sent)
    return connection


def test_a_stalled_body_is_given_up(strict):
    upload_id = create(strict.http)
    with raw_put(strict, upload_id, 1000, b"x" * 10) as connection:
        answer = b"".join(iter(lambda: connection.recv(4096), b""))
    assert answer.startswith(b"HTTP/1.1 408 ")
    assert b'"upload_stalled"' in answer
    assert state(strict.http, upload_id) == "open"
    assert staged(strict) == []


def send_times(connection, piece, times):
    for _ in range(times):
        connection.sendall(piece)


@pytest.mark.parametrize("declared", [True, False], ids=["declared", "chunked"])
def test_a_body_that_was_refused_is_not_read_to_its_end(strict, declared):
    """The answer can be read, and then the connection is closed, however much more would come."""
    upload_id = create(strict.http)
    host, port = strict.url.removeprefix("http://").split(":")
    length = "Content-Length: 10000000000" if declared else "Transfer-Encoding: chunked"
    head = f"PUT /v1/uploads/{upload_id}/content HTTP/1.1\r\nHost: localhost\r\n{length}\r\n\r\n"
    piece = b"x" * 2**20 if declared else b"100000\r\n" + b"x" * 2**20 + b"\r\n"
    with socket.create_connection((host, int(port)), timeout=30) as connection:
        connection.sendall(head.encode())
        connection.sendall(piece)
        answer = connection.recv(65536)
        assert answer.startswith(b"HTTP/1.1 413 ")
        assert b"connection: close" in answer.lower()
        assert b'"upload_too_large"' in answer
        with pytest.raises(ConnectionError):
            send_times(connection, piece, 10_000)
    assert staged(strict) == []


def test_a_caller_that_goes_away_leaves_nothing(service, http):
    upload_id = create(http)
    with raw_put(service, upload_id, 10**7, b"x" * 3 * 10**6):
        deadline = time.monotonic() + 5
        while not staged(service) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert staged(service)
    deadline = time.monotonic() + 5
    while staged(service) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert staged(service) == []
    assert state(http, upload_id) == "open"


def test_full_disk(tmp_path):
    with serve(Settings(data_dir=tmp_path, min_free_bytes=2**62)) as full:
        assert_problem(full.http.post("/v1/uploads", json={"size": 1}), 507, "store_full")
        upload_id = create(full.http)
        assert_problem(put(full.http, upload_id), 507, "store_full")
        assert_problem(put_part(full.http, upload_id, 1, b"x"), 507, "store_full")
        assert staged(full) == []


def test_a_disk_that_fills_while_bytes_arrive(service, http, monkeypatch):
    free = iter([2**40, 2**40, 0])
    monkeypatch.setattr("catalog.blobs.Blobs.free_bytes", lambda _: next(free, 0))
    upload_id = create(http)
    assert_problem(put(http, upload_id, pieces(bytes(40 * 2**20), 2**20)), 507, "store_full")
    assert staged(service) == []


def test_uploads_do_not_keep_others_waiting(service, http):
    """While a body arrives and is written, a small request is answered."""
    upload_id = create(http)
    with raw_put(service, upload_id, 10**9, b"x" * 10**6) as connection:
        start = time.monotonic()
        assert httpx.get(f"{service.url}/livez", trust_env=False).status_code == 200
        assert time.monotonic() - start < 10
        connection.sendall(b"x")
