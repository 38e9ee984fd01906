"""Streams of events that break."""

from __future__ import annotations

import json

import httpx
import pytest
from httpx_sse import connect_sse

from tests.acceptance.harness import BRIEF

pytestmark = pytest.mark.faults


def read(url, job_id, *, after=None, count=None):
    """Numbers and types of a job's events, so many of them, or up to the end."""
    headers = {} if after is None else {"last-event-id": str(after)}
    events = []
    with (
        httpx.Client(trust_env=False, timeout=120) as http,
        connect_sse(http, "GET", f"{url}/v1/jobs/{job_id}/events", headers=headers) as stream,
    ):
        for event in stream.iter_sse():
            events.append((int(event.id), json.loads(event.data)["type"]))
            if len(events) == count:
                break
    return events


def test_stream_dropped_and_resumed_at_another_process(service, inputs):
    """Its process is killed; another, and then its successor, go on after the last event that was seen."""
    other = service.start_another_api()
    job = inputs.submit(benchmark=BRIEF | {"max_seconds": 2, "max_rounds": 1_000_000})
    seen = read(other.url, job.id, count=2)
    other.kill()
    seen += read(service.client.base_url, job.id, after=seen[-1][0], count=1)
    service.api.stop()
    service.start_api()
    seen += read(service.client.base_url, job.id, after=seen[-1][0])
    row = service.assert_settled(job.id, "succeeded")
    assert [number for number, _ in seen] == list(range(1, row.last_event + 1))
    assert seen[-1][1] == "succeeded"
