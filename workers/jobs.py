"""Claiming jobs of one queue and running them, as many at once as the worker has slots."""

from __future__ import annotations

import logging
import threading

from catalog.db import AWAY, Database
from catalog.jobs.leases import Leases
from catalog.jobs.states import Queue
from catalog.settings import Settings
from workers.lease import Drain
from workers.supervisor import Supervisor

logger = logging.getLogger(__name__)


class JobLoop:
    """Runs what waits on a queue.

    Args:
        slots: Jobs at once.
    """

    def __init__(
        self,
        *,
        settings: Settings,
        database: Database,
        supervisor: Supervisor,
        drain: Drain,
        queue: Queue,
        worker_id: str,
        slots: int,
    ) -> None:
        self._settings = settings
        self._database = database
        self._supervisor = supervisor
        self._drain = drain
        self._queue = queue
        self._worker_id = worker_id
        self._slots = threading.Semaphore(slots)
        self._count = threading.Lock()
        self._free = slots

    @property
    def free_slots(self) -> int:
        """How many more jobs could run now."""
        return self._free

    def run_until_empty(self) -> None:
        """Claim and run jobs, one after another, until none waits or the worker is shutting down."""
        with self._slots:
            self._occupy(1)
            try:
                while not self._drain.begun.is_set() and self._run_next():
                    pass
            except AWAY as error:
                # Nothing was claimed; the sweeper looks again.
                logger.warning("could not claim from queue %s: %s", self._queue, error.orig)
            finally:
                self._occupy(-1)

    def _occupy(self, slots: int) -> None:
        with self._count:
            self._free -= slots

    def _run_next(self) -> bool:
        with self._database.write() as session:
            claimed = Leases(session).claim(
                self._queue, owner=self._worker_id, lease_seconds=self._settings.lease_seconds
            )
        if claimed is None:
            return False
        self._supervisor.run(*claimed)
        return True
