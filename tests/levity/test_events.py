from __future__ import annotations

import json
import time

import pytest

from levity import LevityError
from levity._sse import ServerSentEvent, parse
from tests.levity.stub import Answer, reply

EVENTS = "GET /v1/jobs/job_1/events"


def event(seq, type_="progress", **data):
    return {"seq": seq, "at": "2026-01-01T00:00:00Z", "type": type_, "attempt": 1, "data": data}


def stream(*events, **more):
    text = "".join(f": ping\n\nid: {e['seq']}\nevent: {e['type']}\ndata: {json.dumps(e)}\n\n" for e in events)
    return Answer(200, text.encode(), {"content-type": "text/event-stream"}, **more)


def job(state):
    return reply({"id": "job_1", "state": state})


def test_parser_follows_the_standard():
    lines = [
        ": comment",
        "id: 1",
        "event: a",
        "data: one",
        "data:two",
        "",
        "",
        "data: no id of its own",
        "",
        "data: cut",
    ]
    assert list(parse(lines)) == [
        ServerSentEvent("a", "one\ntwo", "1"),
        ServerSentEvent("message", "no id of its own", "1"),
    ]


def test_broken_stream_is_resumed_after_the_last_event(stub, levity):
    stub.on(EVENTS, stream(event(1, "queued"), event(2, "running")), stream(event(3), event(4, "succeeded")))
    stub.on("GET /v1/jobs/job_1", job("succeeded"))
    seen = []
    assert levity.wait("job_1", on_event=lambda entry: seen.append(entry.seq)).state == "succeeded"
    assert seen == [1, 2, 3, 4]
    assert [request.headers.get("last-event-id") for request in stub.sent(EVENTS)] == [None, "2"]


def test_service_that_restarts_meanwhile_is_waited_for(stub, levity):
    stub.on(EVENTS, stream(event(1, "queued")), Answer(503), stream(event(2, "succeeded")))
    stub.on("GET /v1/jobs/job_1", job("succeeded"))
    assert [entry.seq for entry in levity.events("job_1")] == [1, 2]


def test_polling_where_no_stream_gets_through(stub, levity):
    def pages(request):
        if request.headers["accept"] == "text/event-stream":
            return Answer(200, b"<html>proxy</html>", {"content-type": "text/html"})
        after = int(request.path.partition("after=")[2])
        known = [event(1, "queued"), event(2, "running"), event(3, "succeeded")]
        return reply({"items": [entry for entry in known if entry["seq"] > after][:2], "next_cursor": None})

    stub.on(EVENTS, pages)
    stub.on("GET /v1/jobs/job_1", job("succeeded"))
    assert [entry.seq for entry in levity.events("job_1")] == [1, 2, 3]


def test_terminal_event_before_a_retry_is_not_the_end(stub, levity):
    stub.on(EVENTS, stream(event(1, "failed")), stream(event(2, "queued"), event(3, "succeeded")))
    stub.on("GET /v1/jobs/job_1", job("queued"), job("succeeded"))
    assert [entry.type for entry in levity.events("job_1")] == ["failed", "queued", "succeeded"]


def test_waiting_ends_when_time_is_up(stub, levity):
    stub.on(EVENTS, stream(event(1, "queued"), hang=True))
    stub.on("GET /v1/jobs/job_1", job("queued"))
    started = time.monotonic()
    with pytest.raises(LevityError, match=r"is queued after 0\.3 s") as error:
        levity.wait("job_1", timeout=0.3)
    assert error.value.code == "wait_timeout"
    assert time.monotonic() - started < 8


def test_unknown_job_is_an_error_at_once(stub, levity):
    with pytest.raises(LevityError) as error:
        levity.wait("job_1")
    assert error.value.status == 404
    assert len(stub.requests) == 1
