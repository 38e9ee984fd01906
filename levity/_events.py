"""Following a job: a stream of events, taken up again when it breaks, or pages of them where no stream gets through."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator

import httpx

from levity import _sse
from levity._transport import TRY_LATER, Transport
from levity.errors import LevityError
from levity.resources import TERMINAL_STATES, Event, Job

# The service sends a comment every 15 s; three missing ones mean that the line is dead.
_SILENCE_SECONDS = 45.0
_STREAM_FAILURES = 3
# Events lie still for so long where only polling works.
_LONG_POLL_SECONDS = 5


class _TimeUp(Exception):
    """The caller does not want to wait any longer."""


def follow(http: Transport, job_id: str, *, after: int, timeout: float | None) -> Iterator[Event]:
    """The job's events with a number above `after`, up to the terminal one; see `Levity.events`."""
    deadline = None if timeout is None else time.monotonic() + timeout
    failures = 0
    try:
        while True:
            seen = after
            source = _stream if failures < _STREAM_FAILURES else _poll
            try:
                for event in source(http, job_id, after, deadline):
                    after = event.seq
                    yield event
                    # A job that was retried has a terminal event in its past.
                    if event.type in TERMINAL_STATES and _job(http, job_id).terminal:
                        return
                if source is _poll:
                    return
            except httpx.TransportError:
                _remaining(deadline)
            except LevityError as error:
                if error.status not in TRY_LATER:
                    raise
            # A stream that brought something is worth resuming; one that never does is given up for polling.
            failures = 0 if after > seen else failures + 1
            _remaining(deadline)
            http.pause()
    except _TimeUp:
        job = _job(http, job_id)
        raise LevityError("wait_timeout", f"Job {job_id} is {job.state} after {timeout:g} s of waiting.") from None


def _stream(http: Transport, job_id: str, after: int, deadline: float | None) -> Iterator[Event]:
    headers = {"accept": "text/event-stream", "cache-control": "no-store"}
    if after:
        headers["last-event-id"] = str(after)
    silence = min(_SILENCE_SECONDS, _remaining(deadline))
    with http.stream(f"/v1/jobs/{job_id}/events", headers=headers, read_timeout=silence) as response:
        if response.headers.get("content-type", "").startswith("text/event-stream"):
            for message in _sse.parse(_in_time(response.iter_lines(), deadline)):
                yield Event.from_json(json.loads(message.data))


def _in_time(lines: Iterator[str], deadline: float | None) -> Iterator[str]:
    for line in lines:
        yield line
        _remaining(deadline)


def _poll(http: Transport, job_id: str, after: int, deadline: float | None) -> Iterator[Event]:
    """Ends when the job has ended and all its events were given."""
    ended = False
    while True:
        page = http.request(
            "GET", f"/v1/jobs/{job_id}/events", params={"after": after}, headers={"accept": "application/json"}
        ).json()
        for item in page["items"]:
            event = Event.from_json(item)
            after = event.seq
            yield event
        if not page["items"]:
            if ended:
                return
            ended = _job(http, job_id, wait=min(_LONG_POLL_SECONDS, _remaining(deadline))).terminal


def _job(http: Transport, job_id: str, *, wait: float = 0) -> Job:
    headers = {"prefer": f"wait={int(wait)}"} if wait >= 1 else None
    return Job.from_json(http.request("GET", f"/v1/jobs/{job_id}", headers=headers).json())


def _remaining(deadline: float | None) -> float:
    """Seconds until the deadline; raises `_TimeUp` when it has passed."""
    if deadline is None:
        return float("inf")
    seconds = deadline - time.monotonic()
    if seconds <= 0:
        raise _TimeUp
    return seconds
