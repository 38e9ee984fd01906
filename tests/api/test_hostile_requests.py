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
