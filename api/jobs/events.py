"""A job's events as Server-Sent Events (WHATWG HTML, section 9.2), read from the database as they appear there."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator
from functools import partial

from anyio.to_thread import run_sync
from sqlalchemy.exc import OperationalError
from starlette.responses import Response, StreamingResponse

from api.dependencies import Services
from api.jobs.schemas import event_json
from api.waiting import stopped_within
from catalog.db import Database, Json
from catalog.errors import NotFound
from catalog.jobs.repository import Jobs
from catalog.jobs.states import JobState

_POLL_SECONDS = 0.25
_PING_SECONDS = 15.0
_BATCH = 500
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}


async def stream(services: Services, job_id: str, after: int) -> Response:
    """A stream of the events above `after` up to the terminal one.

    Where that one is past already the answer is 204, which tells a browser's EventSource not to come again.
    """
    first, ended = await run_sync(_new_events, services.database, job_id, after)
    if ended and not first:
        return Response(status_code=204, headers=_HEADERS)
    lines = _lines(services.database, services.stopping, job_id, after)
    return StreamingResponse(lines, media_type="text/event-stream", headers=_HEADERS)


async def _lines(database: Database, stopping: asyncio.Event, job_id: str, after: int) -> AsyncIterator[str]:
    quiet_since = time.monotonic()
    while True:
        try:
            events, ended = await run_sync(partial(_new_events, database, job_id, after))
        except (NotFound, OperationalError):
            # Deleted meanwhile, or the database is away: the client comes again and hears which.
            return
        for event in events:
            after = event["seq"]
            quiet_since = time.monotonic()
            yield f"id: {after}\nevent: {event['type']}\ndata: {json.dumps(event)}\n\n"
        if ended or (not events and await stopped_within(stopping, _POLL_SECONDS)):
            return
        if time.monotonic() - quiet_since >= _PING_SECONDS:
            quiet_since = time.monotonic()
            yield ": ping\n\n"


def _new_events(database: Database, job_id: str, after: int) -> tuple[list[Json], bool]:
    """Events above `after`, and whether none will follow them."""
    with database.read() as session:
        jobs = Jobs(session)
        state, newest = jobs.position(job_id)
        events = [event_json(row) for row in jobs.events(job_id, after=after, limit=_BATCH)] if newest > after else []
    seen = events[-1]["seq"] if events else after
    # A job that was retried has a terminal event in its past: only the newest one is the end.
    return events, JobState(state).terminal and seen >= newest
