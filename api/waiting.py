"""Waiting for the database to say something, without holding a thread."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import TypeVar

from anyio.to_thread import run_sync

_FIRST_PAUSE_SECONDS = 0.05
_LONGEST_PAUSE_SECONDS = 0.5

T = TypeVar("T")


async def wait_until(look: Callable[[], T], done: Callable[[T], bool], *, seconds: float, stopping: asyncio.Event) -> T:
    """What `look` gives once it is `done`, or when the time is up or the process is told to stop.

    Args:
        look: Asks the database; runs in a thread.
        done: Whether that is what the caller waits for.
        seconds: Longest time to wait.
        stopping: Ends the waiting.
    """
    deadline = time.monotonic() + seconds
    pause = _FIRST_PAUSE_SECONDS
    while True:
        value = await run_sync(look)
        left = deadline - time.monotonic()
        if done(value) or left <= 0 or await stopped_within(stopping, min(pause, left)):
            return value
        pause = min(pause * 1.5, _LONGEST_PAUSE_SECONDS)


async def stopped_within(stopping: asyncio.Event, seconds: float) -> bool:
    """Sleep; True at once when the process is told to stop."""
    try:
        async with asyncio.timeout(seconds):
            await stopping.wait()
    except TimeoutError:
        return False
    return True
