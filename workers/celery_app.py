"""The Celery worker: receives wake-ups on one queue, in threads, and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from celery import Celery
from celery.exceptions import WorkerShutdown
from celery.worker import WorkController, state

from catalog.jobs.states import Queue
from workers import tasks


class Receiver:
    """Listens to the broker in the calling thread until `stop`.

    Args:
        app: From `catalog.broker.build_celery`.
        queue: The one queue to listen to.
        threads: Wake-ups that are served at once.
        run_until_empty: What a wake-up does.
    """

    def __init__(self, app: Celery, queue: Queue, threads: int, run_until_empty: Callable[[], None]) -> None:
        tasks.register(app, queue, run_until_empty)
        app.finalize()
        app.set_current()
        self._controller = WorkController(
            app=app,
            pool_cls="threads",
            concurrency=threads,
            queues=[str(queue)],
            without_gossip=True,
            without_mingle=True,
            without_heartbeat=True,
            loglevel="INFO",
        )

    def run(self) -> None:
        """Serve wake-ups. Returns after `stop`, once those being served have ended."""
        self._controller.start()

    @staticmethod
    def stop() -> NoReturn:
        """Receive nothing more. For signal handlers of the thread that is in `run`.

        Raises:
            WorkerShutdown: Always, for `run` to catch: Celery looks at its own flag only every other second. A message
                that was being received meanwhile is lost, which costs a wake-up and no job.
        """
        state.should_stop = 0
        raise WorkerShutdown(0)
