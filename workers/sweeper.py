"""What every worker does now and then, so that nothing stays lost: jobs, wake-ups, workers, folders."""

from __future__ import annotations

import logging
import random
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from catalog.broker import Wakeups, remove_taken_messages
from catalog.db import Database, Json
from catalog.jobs.leases import Leases
from catalog.jobs.states import Queue
from catalog.settings import Settings
from catalog.workers.repository import Workers
from workers.alarm import Alarm
from workers.jobs import JobLoop
from workers.workspace import Workspace

logger = logging.getLogger(__name__)

_FORGET_AFTER_SWEEPS = 6
_KEEP_MESSAGES_SECONDS = 60.0


class Sweeper:
    """A thread that looks around every `sweep_seconds`, and sooner when the alarm says so."""

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        wakeups: Wakeups,
        workspace: Workspace,
        jobs: JobLoop,
        alarm: Alarm,
        queue: Queue,
        worker_id: str,
        slots: int,
        capabilities: Json,
    ) -> None:
        self._settings = settings
        self._database = database
        self._wakeups = wakeups
        self._workspace = workspace
        self._jobs = jobs
        self._queue = queue
        self._worker_id = worker_id
        self._slots = slots
        self._capabilities = capabilities
        self._alarm = alarm
        # Jobs that no message announced are run from here rather than announced again: the broker may be away.
        self._helpers = ThreadPoolExecutor(slots, "helper")
        self._thread = threading.Thread(target=self._run, name="sweeper", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Stop looking around, and wait for jobs that were started from here."""
        self._alarm.stop()
        if self._thread.ident is not None:
            self._thread.join()
        self._helpers.shutdown(cancel_futures=True)

    def sweep(self) -> None:
        """Look around once."""
        with self._database.write() as session:
            woken = Leases(session).sweep()
            workers = Workers(session)
            if not workers.seen(self._worker_id):
                self._register(workers)
            workers.forget_silent(seconds=_FORGET_AFTER_SWEEPS * self._settings.sweep_seconds)
        for queue in woken:
            self._wakeups.wake(queue)
        with self._database.read() as session:
            waiting = Leases(session).waiting(self._queue)
        for _ in range(min(waiting, self._jobs.free_slots)):
            self._helpers.submit(self._jobs.run_until_empty)
        remove_taken_messages(self._settings, older_than=time.time() - _KEEP_MESSAGES_SECONDS)
        self._workspace.remove_abandoned()

    def _register(self, workers: Workers) -> None:
        """Also after a pause, in which others took this worker for lost."""
        workers.register(
            self._worker_id,
            host=socket.gethostname(),
            queue=self._queue,
            concurrency=self._slots,
            capabilities=self._capabilities,
        )

    def _run(self) -> None:
        # Workers that started together should not sweep together.
        while self._alarm.wait(self._settings.sweep_seconds * random.uniform(0.8, 1.2)):  # noqa: S311 - no secret
            self._workspace.beat()
            try:
                self.sweep()
            except Exception:
                logger.exception("the sweep failed; the next one tries again")
