from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time

import httpx
import pytest
from httpx_sse import connect_sse

from api.jobs.schemas import EventPage
from tests.api.harness import assert_problem

RESULT = {"metrics": [], "steps": [], "notes": []}


def stream(service, job_id, *, headers=None, after=None):
    """All messages of the stream, and its response."""
    params = {} if after is None else {"after": after}
    with connect_sse(service.http, "GET", f"/v1/jobs/{job_id}/events", headers=headers or {}, params=params) as source:
        return list(source.iter_sse()), source.response


def types(messages):
    return [message.event for message in messages]


def run(service, job_id):
    claim = service.claim(job_id)
    service.leases(lambda leases: leases.progress(claim, phase="pruning", fraction=0.5, message="fc1\nfc2"))
    service.leases(lambda leases: leases.note(claim, "step", {"index": 0}))
    service.leases(lambda leases: leases.publish(claim, artifacts=[], result=RESULT))


ALL = ["queued", "running", "progress", "step", "succeeded"]


def test_pages(service):
    job_id = service.job()
    run(service, job_id)
    page = service.http.get(f"/v1/jobs/{job_id}/events").json()
    EventPage.model_validate(page)
    assert [item["type"] for item in page["items"]] == ALL
    assert [item["seq"] for item in page["items"]] == [1, 2, 3, 4, 5]
    assert [item["attempt"] for item in page["items"]] == [0, 1, 1, 1, 1]
    assert page["items"][2]["data"] == {"phase": "pruning", "progress": 0.5, "message": "fc1\nfc2"}
    assert page["next_cursor"] is None
    first = service.http.get(f"/v1/jobs/{job_id}/events?limit=2").json()
    assert ([item["seq"] for item in first["items"]], first["next_cursor"]) == ([1, 2], "2")
    rest = service.http.get(f"/v1/jobs/{job_id}/events?after={first['next_cursor']}").json()
    assert [item["seq"] for item in rest["items"]] == [3, 4, 5]
    assert service.http.get(f"/v1/jobs/{job_id}/events?after=99").json() == {"items": [], "next_cursor": None}


@pytest.mark.parametrize("query", ["after=-1", "after=x", "after=99999999999999999999"])
def test_numbers_that_no_event_has(service, query):
    response = service.http.get(f"/v1/jobs/{service.job()}/events?{query}")
    assert_problem(response, 422, "invalid_request", "/query/after")


def test_a_stream_of_what_is_past_ends_with_the_terminal_event(service):
    job_id = service.job()
    run(service, job_id)
    messages, response = stream(service, job_id)
    assert types(messages) == ALL
    assert [message.id for message in messages] == ["1", "2", "3", "4", "5"]
    items = service.http.get(f"/v1/jobs/{job_id}/events").json()["items"]
    assert [json.loads(message.data) for message in messages] == items
    assert response.headers["content-type"].startswith("text/event-stream")
    assert response.headers["cache-control"] == "no-store"


def test_a_stream_resumes_after_what_was_seen(service):
    job_id = service.job()
    run(service, job_id)
    assert types(stream(service, job_id, headers={"last-event-id": "3"})[0]) == ALL[3:]
    assert types(stream(service, job_id, after=3)[0]) == ALL[3:]
    assert types(stream(service, job_id, after=1, headers={"last-event-id": "4"})[0]) == ALL[4:]


def test_nothing_after_the_end(service):
    job_id = service.job()
    run(service, job_id)
    headers = {"accept": "text/event-stream", "last-event-id": "5"}
    response = service.http.get(f"/v1/jobs/{job_id}/events", headers=headers)
    assert (response.status_code, response.content) == (204, b"")


@pytest.mark.parametrize("last", ["x", "-1", "9" * 30])
def test_ids_that_no_event_has(service, last):
    headers = {"accept": "text/event-stream", "last-event-id": last}
    response = service.http.get(f"/v1/jobs/{service.job()}/events", headers=headers)
    assert_problem(response, 422, "invalid_request", "/header/last-event-id")


def test_events_arrive_as_they_happen(service):
    job_id = service.job()
    seen = []

    def watch():
        with (
            httpx.Client(base_url=service.url, trust_env=False, timeout=20) as http,
            connect_sse(http, "GET", f"/v1/jobs/{job_id}/events") as source,
        ):
            seen.extend((message.event, time.monotonic()) for message in source.iter_sse())

    thread = threading.Thread(target=watch)
    thread.start()
    while not seen:
        time.sleep(0.01)
    claim = service.claim(job_id)
    done = time.monotonic()
    while len(seen) < 2:
        time.sleep(0.01)
    assert seen[1][1] - done < 2
    service.leases(lambda leases: leases.publish(claim, artifacts=[], result=RESULT))
    thread.join(10)
    assert not thread.is_alive()
    assert [event for event, _ in seen] == ["queued", "running", "succeeded"]


def test_a_retried_job_has_a_terminal_event_in_its_past(service):
    job_id = service.job()
    service.fail(job_id)
    service.http.post(f"/v1/jobs/{job_id}/retry").raise_for_status()
    service.publish(job_id, RESULT)
    assert types(stream(service, job_id)[0]) == ["queued", "running", "failed", "queued", "running", "succeeded"]


def test_a_long_silence_is_broken_by_pings(service, monkeypatch):
    monkeypatch.setattr("api.jobs.events._PING_SECONDS", 0.1)
    job_id = service.job()
    with service.http.stream("GET", f"/v1/jobs/{job_id}/events", headers={"accept": "text/event-stream"}) as response:
        lines = response.iter_lines()
        while next(lines) != ": ping":
            pass
        service.http.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
        assert "event: cancelled" in list(lines)


def test_more_events_than_one_look_takes(service, monkeypatch):
    monkeypatch.setattr("api.jobs.events._BATCH", 2)
    job_id = service.job()
    run(service, job_id)
    assert types(stream(service, job_id)[0]) == ALL


def test_streams_end_when_the_server_is_told_to_stop(tmp_path):
    """A waiting stream must not hold up the shutdown until the server breaks it."""
    environment = {**os.environ, "LEVITY_DATA_DIR": str(tmp_path)}
    command = [sys.executable, "-m", "uvicorn", "api.app:create_app", "--factory", "--port", "0"]
    server = subprocess.Popen(
        [*command, "--timeout-graceful-shutdown", "30"], env=environment, stderr=subprocess.PIPE, text=True
    )
    try:
        url = next(word for line in server.stderr if "running on" in line for word in line.split() if "://" in word)
        reader = threading.Thread(target=server.stderr.read)
        reader.start()
        with httpx.Client(base_url=url, trust_env=False, timeout=20) as http:
            upload = http.post("/v1/uploads", json={}).json()["id"]
            http.put(f"/v1/uploads/{upload}/content", content=b"x").raise_for_status()
            model = http.post("/v1/models", json={"upload_id": upload}).json()["id"]
            job = http.post("/v1/jobs", json={"model_id": model, "pipeline": [{"type": "prune", "amount": 0.5}]}).json()
            with connect_sse(http, "GET", job["links"]["events"]) as source:
                messages = source.iter_sse()
                assert next(messages).event == "queued"
                start = time.monotonic()
                server.send_signal(signal.SIGTERM)
                assert list(messages) == []
            server.wait(15)
            assert time.monotonic() - start < 10
        reader.join()
    finally:
        server.kill()
        server.wait()
        server.stderr.close()
