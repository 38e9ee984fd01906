"""Requests that cost other services dearly."""

from __future__ import annotations

import time

from tests.api.harness import assert_problem

SECONDS = 10  # quadratic work on these would take minutes


def test_thousands_of_ranges(service, http):
    """CVE-2025-62727: ranges were merged in quadratic time."""
    job = service.job()
    service.publish(job, {}, {"large": (bytes(2**20), "application/octet-stream")})
    ranges = ",".join(f"{start}-{start}" for start in range(0, 20_000, 2))[:60_000].rpartition(",")[0]
    began = time.monotonic()
    answer = http.get(f"/v1/jobs/{job}/artifacts/large", headers={"range": f"bytes={ranges}"})
    assert answer.status_code in {200, 206, 400, 416, 431}
    assert len(answer.content) < 4 * 2**20
    assert time.monotonic() - began < SECONDS


def test_forms_are_not_parsed(http):
    """CVE-2024-53981: every byte before the first boundary was logged."""
    for path in ("/v1/uploads", "/v1/models", "/v1/jobs"):
        began = time.monotonic()
        answer = http.post(path, content=b"\r\n" * 500_000, headers={"content-type": "multipart/form-data; boundary=x"})
        assert_problem(answer, 415, "unsupported_media_type")
        assert time.monotonic() - began < SECONDS


def test_deep_and_long_json(http):
    for body in (b"[" * 500_000, b'{"a":' * 150_000, b"9" * 900_000, b'"' + b"\\u0000" * 100_000 + b'"', b"1e999999"):
        began = time.monotonic()
        answer = http.post("/v1/uploads", content=body, headers={"content-type": "application/json"})
        assert_problem(answer, 400, "malformed_json")
        assert time.monotonic() - began < SECONDS


def test_bodies_take_what_their_schema_says(http):
    """pydantic alone reads `true` as 1 and `"5"` as 5, which the document forbids."""
    for size in (True, "5", 5.5):
        assert_problem(http.post("/v1/uploads", json={"size": size}), 422, "invalid_request", "/size")
    step = {"type": "prune", "amount": "0.5"}
    answer = http.post("/v1/jobs", json={"model_id": "mdl_x", "pipeline": [step]})
    assert answer.status_code == 422
    assert [error["pointer"] for error in answer.json()["errors"]] == ["/pipeline/0/amount"]


def test_what_is_not_possible_says_what_is(http):
    answer = http.request("OPTIONS", "/v1/models/mdl_x")
    assert_problem(answer, 405, "method_not_allowed")
    assert answer.headers["allow"] == "DELETE, GET"
