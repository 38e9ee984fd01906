"""A worker's turns at collecting, in a thread of their own: a round may take minutes, and leases cannot wait."""

from __future__ import annotations

import logging
import random
import threading

from catalog.blobs import Blobs
from catalog.db import AWAY, Database
from catalog.errors import StoreUnavailable
from catalog.settings import Settings
from catalog.storage.collector import Collector

logger = logging.getLogger(__name__)

_LOOK_SECONDS = 60.0


class CollectorThread:
    """Looks every minute whether a round is due; of all workers one makes it."""

    def __init__(self, settings: Settings, database: Database, blobs: Blobs) -> None:
        self._seconds = min(_LOOK_SECONDS, settings.collect_seconds)
        self._over = threading.Event()
        self._collector = Collector(settings, database, blobs, stopped=self._over.is_set)
        self._thread = threading.Thread(target=self._run, name="collector", daemon=True)

    def start(self) -> None:
        """Begin, unless rounds are turned off."""
        if self._seconds:
            self._thread.start()

    def stop(self) -> None:
        """End; a round is cut off."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        # Workers that started together should not ask together.
        while not self._over.wait(self._seconds * random.uniform(0.8, 1.2)):  # noqa: S311 - no secret
            try:
                self._collector.run_if_due()
            except (*AWAY, StoreUnavailable) as error:
                logger.warning("collection was broken off, the next round goes on: %s", error)
            except Exception:
                logger.exception("collection failed; the next round tries again")
