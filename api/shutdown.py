"""Learning early that the process is to stop.

A server stops listening, waits for the requests that run and only then ends the application's lifespan. Requests that
wait for something, such as streams of events, would hold it up, so they must hear of the signal itself.
"""

from __future__ import annotations

import asyncio
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def notice_signals(stopping: asyncio.Event) -> Iterator[None]:
    """Set `stopping` on SIGINT and SIGTERM, beside whatever the server does on them; also when the block ends."""
    loop = asyncio.get_running_loop()
    earlier: dict[signal.Signals, Any] = {}

    def notice(number: int, frame: FrameType | None) -> None:
        loop.call_soon_threadsafe(stopping.set)
        handler = earlier[signal.Signals(number)]
        if callable(handler):
            handler(number, frame)

    # Only the main thread may have handlers; without a server's own there is nothing to stand beside.
    if threading.current_thread() is threading.main_thread():
        for number in _SIGNALS:
            handler = signal.getsignal(number)
            if callable(handler) and handler is not signal.default_int_handler:
                earlier[number] = handler
                signal.signal(number, notice)
    try:
        yield
    finally:
        stopping.set()
        for number, handler in earlier.items():
            signal.signal(number, handler)
