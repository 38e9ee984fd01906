"""Delivery of webhooks: takes what is due from the outbox and sends it, beside the jobs of queue `io`."""

from __future__ import annotations

import logging
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from catalog import tracing
from catalog.db import AWAY, Database
from catalog.errors import Fenced
from catalog.logs import bound
from catalog.settings import Settings
from catalog.webhooks.deliveries import Claim, Deliveries, Outcome
from catalog.webhooks.repository import Webhooks
from workers.alarm import Alarm
from workers.lease import Drain
from workers.sending import Sender

logger = logging.getLogger(__name__)

_PRUNE_SECONDS = 3600.0
_SETTLE_PAUSE_SECONDS = 0.5
_LEAST_WAIT_SECONDS = 0.02


class Deliverer:
    """A thread that claims deliveries, and others that send them: a slow receiver keeps no job waiting.

    It looks around every `sweep_seconds`, when it is woken, and when the next delivery is due.
    """

    def __init__(self, *, settings: Settings, database: Database, drain: Drain, worker_id: str) -> None:
        self._settings = settings
        self._database = database
        self._drain = drain
        self._worker_id = worker_id
        self._sender = Sender(settings.webhook_policy, timeout_seconds=settings.webhook_timeout_seconds)
        # An attempt ends by itself within its time, so nobody renews its lease.
        self._lease_seconds = settings.webhook_timeout_seconds + settings.lease_seconds
        self._pool = ThreadPoolExecutor(settings.webhook_senders, "webhook")
        self._count = threading.Lock()
        self._free = settings.webhook_senders
        self._alarm = Alarm()
        self._prune_at = 0.0
        self._thread = threading.Thread(target=self._run, name="webhooks", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Look around now."""
        self._alarm.ring_in(0)

    def stop(self) -> None:
        """Claim nothing more, and wait for what is being sent, as long as the worker may."""
        self._alarm.stop()
        if self._thread.ident is not None:
            self._thread.join()
        waiting = threading.Timer(self._drain.seconds_left() or 0.0, self._sender.abort)
        waiting.start()
        self._pool.shutdown()
        waiting.cancel()

    def dispatch(self) -> None:
        """Take what is due, as much as can be sent at once."""
        now = time.monotonic()
        if now >= self._prune_at:
            self._prune_at = now + _PRUNE_SECONDS
            with self._database.write() as session:
                Webhooks(session).prune(older_than_seconds=self._settings.webhook_retention_seconds)
        with self._database.read() as session:
            # In this order: what becomes due between the two is seen by the second.
            soon = Deliveries(session).seconds_until_due()
            due = Deliveries(session).due()
        if soon is not None:
            self._alarm.ring_in(max(soon, _LEAST_WAIT_SECONDS))
        if due:
            for claim in self._claim():
                self._pool.submit(self._deliver, claim)

    def _claim(self) -> list[Claim]:
        claims: list[Claim] = []
        with self._database.write() as session:
            deliveries = Deliveries(session)
            deliveries.sweep()
            while len(claims) < self._free:
                claim = deliveries.claim(owner=self._worker_id, lease_seconds=self._lease_seconds)
                if claim is None:
                    break
                claims.append(claim)
        self._occupy(len(claims))
        return claims

    def _deliver(self, claim: Claim) -> None:
        about: dict[str, str | int | None] = {"attempt": claim.attempt, "job_id": claim.job_id, "tenant": claim.tenant}
        with (
            bound(delivery_id=claim.delivery_id, **about),
            tracing.span(
                "deliver webhook",
                parent=claim.traceparent,
                kind="client",
                delivery_id=claim.delivery_id,
                webhook_id=claim.webhook_id,
                **about,
            ),
        ):
            self._send(claim)

    def _send(self, claim: Claim) -> None:
        try:
            outcome = self._sender.send(claim)
            tracing.current().note(http_status=outcome.status)
            if outcome.error_code is not None:
                tracing.current().fail(outcome.error_code)
            self._settle(claim, outcome)
        except Fenced as error:
            logger.warning("webhook %s dropped: %s", claim.webhook_id, error)
        except Exception:
            logger.exception("delivery %s: the worker failed", claim.delivery_id)
        finally:
            self._occupy(-1)
            self.wake()

    def _settle(self, claim: Claim, outcome: Outcome) -> None:
        given_up = self._drain.over and outcome.error_code is not None
        until = time.monotonic() + self._settings.lease_seconds
        while True:
            try:
                with self._database.write() as session:
                    if given_up:
                        Deliveries(session).release(claim)
                        return
                    state = Deliveries(session).settle(
                        claim, outcome, disable_after_seconds=self._settings.webhook_disable_after_seconds
                    )
                break
            except AWAY as error:
                if time.monotonic() > until:
                    raise
                logger.warning("database does not answer, delivery %s waits: %s", claim.delivery_id, error.orig)
                time.sleep(_SETTLE_PAUSE_SECONDS)
        logger.info(
            "delivery %s attempt %d: %s, %s after %.2f s",
            claim.delivery_id,
            claim.attempt,
            state,
            outcome.error_code or outcome.status,
            outcome.duration_seconds,
        )

    def _occupy(self, senders: int) -> None:
        with self._count:
            self._free -= senders

    def _run(self) -> None:
        while self._alarm.wait(self._settings.sweep_seconds):
            try:
                self.dispatch()
            except AWAY as error:
                logger.warning("could not look for deliveries: %s", error.orig)
            except Exception:
                logger.exception("could not look for deliveries; the next round tries again")
