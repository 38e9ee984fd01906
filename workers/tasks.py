"""The one task there is."""

from __future__ import annotations

import logging
from collections.abc import Callable

from celery import Celery

from catalog.broker import WAKE_TASK
from catalog.jobs.states import Queue

logger = logging.getLogger(__name__)


def register(app: Celery, queue: Queue, run_until_empty: Callable[[], None]) -> None:
    """Have `app` serve wake-ups.

    Args:
        app: Receives the messages.
        queue: The worker's queue.
        run_until_empty: Claims and runs jobs of that queue.
    """

    @app.task(name=WAKE_TASK, ignore_result=True, acks_late=False)  # type: ignore[untyped-decorator]
    def wake(name: str) -> None:
        if name != queue:
            logger.warning("a wake-up for queue %r arrived on queue %s", name, queue)
        run_until_empty()
