"""A worker's hold on a job: renewed in the background, and checked before anything is done with the job."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from contextvars import copy_context
from functools import partial
from types import TracebackType
from typing import Self, TypeVar

from catalog.db import AWAY, Database
from catalog.errors import Fenced, StoreUnavailable
from catalog.jobs.effort import Effort
from catalog.jobs.leases import Claim, Leases
from catalog.settings import Settings

logger = logging.getLogger(__name__)

T = TypeVar("T")

_RETRY_SECONDS = 0.5


class CancelRequested(Exception):
    """The job's owner wants it to stop."""


class TimeLimitReached(Exception):
    """The attempt took longer than its job may."""


class WorkerDrains(Exception):
    """The worker is shutting down and cannot wait for the job any longer."""


class Drain:
    """Whether the worker is shutting down, and how long its jobs may still go on."""

    def __init__(self) -> None:
        self._deadline: float | None = None
        self.begun = threading.Event()

    def begin(self, seconds: float) -> None:
        """Claim nothing more, and give jobs back after `seconds`."""
        self._deadline = time.monotonic() + seconds
        self.begun.set()

    @property
    def over(self) -> bool:
        """True when running jobs must be given back."""
        return self._deadline is not None and time.monotonic() >= self._deadline

    def seconds_left(self) -> float | None:
        """Time until `over`; None when the worker is not shutting down."""
        return None if self._deadline is None else max(0.0, self._deadline - time.monotonic())


class Lease:
    """A context in which a claim is kept.

    A thread renews the claim and asks for cancel requests meanwhile, so neither waits for a large file that the
    job's own thread happens to copy.

    Attributes:
        claim: What is held.
        wake: A descriptor that becomes readable when `check` has something new to say.
        log_tail: End of the log of the child that worked under it, once that has ended.
        effort: What the attempt has taken so far.
    """

    def __init__(
        self,
        database: Database,
        claim: Claim,
        settings: Settings,
        drain: Drain,
        *,
        time_limit_seconds: float,
        waited_seconds: float = 0.0,
    ) -> None:
        self.claim = claim
        self.effort = Effort(waited_seconds)
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.log_tail = ""
        self._database = database
        self._settings = settings
        self._drain = drain
        self._held_since = time.monotonic()
        self._time_limit_at = self._held_since + time_limit_seconds
        self._lost = False
        self._cancel_requested = False
        self._over = threading.Event()
        # Its lines in the log belong to the job too.
        keep = partial(copy_context().run, self._keep)
        self._thread = threading.Thread(target=keep, name=f"lease-{claim.job_id}", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        self._thread.join()
        os.close(self.wake)

    def check(self) -> None:
        """Raise when the attempt must not go on.

        Raises:
            Fenced: The claim is lost.
            CancelRequested, TimeLimitReached, WorkerDrains: As they say.
        """
        if self._surely_lost():
            raise Fenced(f"The lease on attempt {self.claim.attempt} of job {self.claim.job_id} is lost.")
        if self._cancel_requested:
            raise CancelRequested
        if time.monotonic() >= self._time_limit_at:
            raise TimeLimitReached
        if self._drain.over:
            raise WorkerDrains

    def seconds_until_check(self) -> float:
        """When `check` must be called again though nothing happened."""
        waits = [self._time_limit_at - time.monotonic(), self._settings.poll_seconds]
        left = self._drain.seconds_left()
        if left is not None:
            waits.append(left)
        return max(0.0, min(waits))

    def write(self, change: Callable[[Leases], T]) -> T:
        """Do `change` in a transaction, patiently."""

        def transaction() -> T:
            with self._database.write() as session:
                return change(Leases(session, self.effort))

        return self.patiently(transaction)

    def patiently(self, action: Callable[[], T], *, store_seconds: float = 300) -> T:
        """Do something with the database or the store; when one is away it is done again.

        Args:
            action: May be done twice.
            store_seconds: How long the store may be away.

        Raises:
            Fenced: The claim is lost.
            StoreUnavailable: The store was away for so long.
            CancelRequested, TimeLimitReached, WorkerDrains: While the store was away.
        """
        give_up_at = time.monotonic() + store_seconds
        while True:
            try:
                return action()
            except StoreUnavailable as error:
                logger.warning("store does not answer, job %s waits: %s", self.claim.job_id, error.__cause__)
                if time.monotonic() >= give_up_at:
                    raise
                self.check()
                time.sleep(_RETRY_SECONDS)
            except AWAY as error:
                logger.warning("database does not answer, job %s waits: %s", self.claim.job_id, error.orig)
                if self._surely_lost():
                    raise Fenced(f"The database was away for longer than the lease on {self.claim.job_id}.") from error
                time.sleep(_RETRY_SECONDS)

    def _surely_lost(self) -> bool:
        return self._lost or time.monotonic() - self._held_since > self._settings.lease_seconds

    def _keep(self) -> None:
        while not self._over.wait(self._settings.poll_seconds):
            try:
                self._ask()
            except Fenced:
                self._lost = True
                self._notify()
                return
            except AWAY as error:
                logger.warning("database does not answer, job %s goes on: %s", self.claim.job_id, error.orig)
                if self._surely_lost():
                    self._notify()

    def _ask(self) -> None:
        now = time.monotonic()
        with self._database.read() as session:
            cancel_requested = Leases(session).cancel_requested(self.claim)
        if cancel_requested and not self._cancel_requested:
            self._cancel_requested = True
            self._notify()
        if now - self._held_since >= self._settings.heartbeat_seconds:
            with self._database.write() as session:
                Leases(session).renew(self.claim, lease_seconds=self._settings.lease_seconds)
            self._held_since = now

    def _notify(self) -> None:
        os.eventfd_write(self.wake, 1)
