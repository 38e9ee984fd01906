from __future__ import annotations

import hashlib
import json
from http.client import HTTPConnection

import pytest

from tests.api.harness import assert_problem, digest_field

CONTENT = bytes(range(256)) * 40  # 10,240 bytes
ETAG = f'"{hashlib.sha256(CONTENT).hexdigest()}"'


@pytest.fixture
def url(service):
    job_id = service.job()
    files = {"model.onnx": (CONTENT, "application/octet-stream"), "ré port.html": (b"<p>", "text/html; charset=utf-8")}
    service.publish(job_id, {}, files)
    return f"/v1/jobs/{job_id}/artifacts/model.onnx"


def test_the_whole(http, url):
    response = http.get(url)
    assert (response.status_code, response.content) == (200, CONTENT)
    assert response.headers["etag"] == ETAG
    assert response.headers["content-length"] == "10240"
    assert response.headers["content-digest"] == response.headers["repr-digest"] == digest_field(CONTENT)
    assert response.headers["accept-ranges"] == "bytes"
    assert response.headers["content-type"] == "application/octet-stream"
    assert response.headers["content-disposition"] == "attachment; filename*=UTF-8''model.onnx"
    assert "immutable" in response.headers["cache-control"]
    assert response.headers["x-content-type-options"] == "nosniff"


def test_head_says_the_same_without_the_bytes(http, url):
    head, get = http.head(url), http.get(url)
    assert (head.status_code, head.content) == (200, b"")
    ignored = {"date", "x-request-id"}
    assert {k: v for k, v in head.headers.items() if k not in ignored} == {
        k: v for k, v in get.headers.items() if k not in ignored
    }


@pytest.mark.parametrize(
    ("asked", "start", "end"),
    [
        ("bytes=0-0", 0, 1),
        ("bytes=100-199", 100, 200),
        ("bytes=10000-", 10000, 10240),
        ("bytes=-100", 10140, 10240),
        ("bytes=-99999", 0, 10240),
        ("bytes=10239-99999999999999999999999999", 10239, 10240),
        ("BYTES = 1-2", 1, 3),
    ],
)
def test_a_range(http, url, asked, start, end):
    response = http.get(url, headers={"range": asked, "if-range": ETAG})
    assert (response.status_code, response.content) == (206, CONTENT[start:end])
    assert response.headers["content-range"] == f"bytes {start}-{end - 1}/10240"
    assert response.headers["content-length"] == str(end - start)
    assert response.headers["repr-digest"] == digest_field(CONTENT)
    # That one is about the bytes of this message, which are not the whole.
    assert "content-digest" not in response.headers


@pytest.mark.parametrize(
    "headers",
    [
        {"range": "bytes=1-0"},
        {"range": "bytes=-"},
        {"range": "bytes=0-1,5-6"},
        {"range": "lines=0-1"},
        {"range": "nonsense"},
        {"range": "bytes=0-1", "if-range": '"other"'},
        {"range": "bytes=0-1", "if-range": f"W/{ETAG}"},
    ],
)
def test_ranges_that_do_not_hold_give_the_whole(http, url, headers):
    response = http.get(url, headers=headers)
    assert (response.status_code, response.content) == (200, CONTENT)


@pytest.mark.parametrize("asked", ["bytes=10240-", "bytes=10240-10250", "bytes=-0", "bytes=99999999999999999999999-"])
def test_ranges_beyond_the_end(http, url, asked):
    response = http.get(url, headers={"range": asked})
    assert_problem(response, 416, "range_not_satisfiable")
    assert response.headers["content-range"] == "bytes */10240"


@pytest.mark.parametrize("known", [ETAG, f"W/{ETAG}", f'"other", {ETAG}', "*"])
def test_who_has_it_is_not_sent_it(http, url, known):
    response = http.get(url, headers={"if-none-match": known, "range": "bytes=0-1"})
    assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", ETAG)


def test_who_has_another_is_sent_it(http, url):
    assert http.get(url, headers={"if-none-match": '"other"'}).content == CONTENT


def test_names_beyond_ascii(http, url):
    folder = url.rpartition("/")[0]
    listed = http.get(folder).json()["items"]
    assert {item["name"] for item in listed} == {"model.onnx", "ré port.html"}
    response = http.get(next(item["url"] for item in listed if "html" in item["name"]))
    assert response.content == b"<p>"
    assert response.headers["content-disposition"] == "attachment; filename*=UTF-8''r%C3%A9%20port.html"
    assert response.headers["content-security-policy"] == "sandbox"


@pytest.mark.parametrize(
    "name",
    [
        "other",
        "..",
        "../model.onnx",
        "..%2fmodel.onnx",
        "..%2F..%2F{other}%2Fartifacts%2Fmodel.onnx",
        "../../{other}/artifacts/model.onnx",
        "%2Fetc%2Fpasswd",
        "model.onnx%00",
        "model.onnx/",
        "MODEL.ONNX",
        "%FF%FE",
    ],
)
def test_names_are_looked_up_and_nothing_else(service, http, url, name):
    other = service.job()
    service.publish(other, {}, {"secret": (b"secret", "text/plain")})
    # httpx would resolve the dots itself; a hostile client does not.
    connection = HTTPConnection(http.base_url.host, http.base_url.port, timeout=10)
    connection.request("GET", url.replace("model.onnx", name.format(other=other)))
    response = connection.getresponse()
    problem = json.load(response)
    connection.close()
    assert response.status == 404
    assert problem["code"] == ("not_found" if "/" in name else "artifact_not_found") or "%2" in name


def test_a_large_file_in_many_pieces(service, http):
    content = bytes(9 * 2**20 + 7)
    job_id = service.job()
    service.publish(job_id, {}, {"large": (content, "application/octet-stream")})
    response = http.get(f"/v1/jobs/{job_id}/artifacts/large")
    assert hashlib.sha256(response.content).hexdigest() == response.headers["etag"].strip('"')
    part = http.get(f"/v1/jobs/{job_id}/artifacts/large", headers={"range": "bytes=4194303-8388609"})
    assert len(part.content) == 8388609 - 4194303 + 1


def test_an_empty_file(service, http):
    job_id = service.job()
    service.publish(job_id, {}, {"empty": (b"", "text/plain")})
    response = http.get(f"/v1/jobs/{job_id}/artifacts/empty")
    assert (response.status_code, response.content, response.headers["content-length"]) == (200, b"", "0")
    ranged = http.get(f"/v1/jobs/{job_id}/artifacts/empty", headers={"range": "bytes=0-"})
    assert_problem(ranged, 416, "range_not_satisfiable")


def test_a_file_that_the_store_lost_is_a_clear_error(service, http, url):
    """Somebody emptied the store: no half answer."""
    job_id = service.job()
    service.publish(job_id, {}, {"lost": (b"only here", "text/plain")})
    service.blobs.delete(hashlib.sha256(b"only here").hexdigest())
    response = http.get(f"/v1/jobs/{job_id}/artifacts/lost")
    assert_problem(response, 404, "artifact_not_found")
