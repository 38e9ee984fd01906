"""All SQL of sending: claim, settle, give back, sweep. Like the job protocol, with `attempt` as the fencing token."""

from __future__ import annotations

import random
from dataclasses import dataclass

from sqlalchemy import ColumnElement, and_, func, insert, or_, select, update
from sqlalchemy.orm import Session, aliased

from catalog import tracing
from catalog.db import db_now
from catalog.errors import Fenced
from catalog.jobs.tables import JobRow
from catalog.tenancy import DEFAULT_TENANT
from catalog.totals.metrics import WEBHOOK_ATTEMPTS
from catalog.totals.repository import count
from catalog.webhooks.repository import disable
from catalog.webhooks.states import BACKOFF_SECONDS, MAX_ATTEMPTS, DeliveryState, DisabledCode
from catalog.webhooks.tables import DeliveryAttemptRow, DeliveryRow, WebhookRow

GONE = 410
_LANE_SHARE = 2
"""Deliveries to one host and port that are under way at once."""


@dataclass(frozen=True)
class Claim:
    """The right to make one attempt, and all that it takes."""

    delivery_id: str
    attempt: int
    webhook_id: str
    url: str
    secrets: tuple[str, ...]
    """The newest first."""
    payload: str
    now: float
    """Seconds since 1970 by the database's clock."""
    job_id: str | None = None
    """The job that the event tells of."""
    tenant: str = DEFAULT_TENANT
    traceparent: str | None = None
    """The span of the request that began the job; None without tracing."""


@dataclass(frozen=True)
class Outcome:
    """How an attempt ended."""

    duration_seconds: float
    status: int | None = None
    """HTTP status of the answer, where there was one."""
    error_code: str | None = None
    """None when the event was delivered."""
    error_message: str = ""
    response: str | None = None
    """How the answer's body begins."""


class Deliveries:
    def __init__(self, session: Session) -> None:
        self._session = session

    def claim(self, *, owner: str, lease_seconds: float) -> Claim | None:
        """Take the delivery that has waited longest among those that are due, or None."""
        other = aliased(DeliveryRow)
        busy = (
            select(other.lane)
            .where(other.state == DeliveryState.SENDING)
            .group_by(other.lane)
            .having(func.count() >= _LANE_SHARE)
        )
        next_id = (
            select(DeliveryRow.id)
            .where(
                DeliveryRow.state == DeliveryState.WAITING,
                DeliveryRow.next_attempt_at <= db_now(),
                DeliveryRow.lane.not_in(busy),
            )
            .order_by(DeliveryRow.next_attempt_at, DeliveryRow.id)
            .limit(1)
            .with_for_update(skip_locked=True)
            .scalar_subquery()
        )
        row = self._session.execute(
            update(DeliveryRow)
            .where(DeliveryRow.id == next_id, DeliveryRow.state == DeliveryState.WAITING)
            .values(
                state=DeliveryState.SENDING,
                attempt=DeliveryRow.attempt + 1,
                attempts_left=DeliveryRow.attempts_left - 1,
                owner=owner,
                lease_until=db_now() + lease_seconds,
                next_attempt_at=None,
            )
            .returning(
                DeliveryRow.id,
                DeliveryRow.attempt,
                DeliveryRow.webhook_id,
                DeliveryRow.payload,
                DeliveryRow.job_id,
                db_now().label("now"),
            )
            .execution_options(synchronize_session=False)
        ).one_or_none()
        if row is None:
            return None
        self._session.execute(
            insert(DeliveryAttemptRow).values(delivery_id=row.id, number=row.attempt, started_at=row.now)
        )
        webhook = self._session.execute(
            select(
                WebhookRow.url,
                WebhookRow.secret,
                WebhookRow.previous_secret,
                WebhookRow.previous_secret_until,
                WebhookRow.tenant,
            ).where(WebhookRow.id == row.webhook_id)
        ).one()
        secrets = [webhook.secret]
        if webhook.previous_secret is not None and (webhook.previous_secret_until or 0.0) > row.now:
            secrets.append(webhook.previous_secret)
        return Claim(
            row.id,
            row.attempt,
            row.webhook_id,
            webhook.url,
            tuple(secrets),
            row.payload,
            row.now,
            job_id=row.job_id,
            tenant=webhook.tenant,
            traceparent=self._traceparent(row.job_id),
        )

    def _traceparent(self, job_id: str | None) -> str | None:
        if job_id is None or not tracing.active():
            return None
        return self._session.scalar(select(JobRow.traceparent).where(JobRow.id == job_id))

    def settle(self, claim: Claim, outcome: Outcome, *, disable_after_seconds: float) -> DeliveryState:
        """Write down how the attempt ended, and whether there is another one.

        Args:
            claim: The attempt.
            outcome: How it ended.
            disable_after_seconds: A webhook that has delivered nothing for so long is disabled when a delivery has
                used up its attempts.

        Raises:
            Fenced: The claim is lost, or the webhook was deleted.
        """
        webhook = self._session.scalars(
            select(WebhookRow).where(WebhookRow.id == claim.webhook_id).with_for_update(key_share=True)
        ).one_or_none()
        if webhook is None:
            raise _fenced(claim)
        left = self._session.scalar(
            select(DeliveryRow.attempts_left).where(*_held(claim)).execution_options(populate_existing=True)
        )
        if left is None:
            raise _fenced(claim)
        failed = outcome.error_code is not None
        gone = outcome.status == GONE
        again = failed and not gone and left > 0 and webhook.enabled
        state = DeliveryState.DELIVERED
        if failed:
            state = DeliveryState.WAITING if again else DeliveryState.FAILED
        self._move(
            claim,
            state=state,
            next_attempt_at=db_now() + _backoff(left) if again else None,
            finished_at=None if again else db_now(),
        )
        self._end_attempt(
            claim,
            duration_seconds=outcome.duration_seconds,
            status=outcome.status,
            error={"code": outcome.error_code, "message": outcome.error_message} if failed else None,
            response=outcome.response,
        )
        count(self._session, WEBHOOK_ATTEMPTS, outcome.error_code or DeliveryState.DELIVERED)
        if not failed:
            self._session.execute(
                update(WebhookRow)
                .where(WebhookRow.id == webhook.id, WebhookRow.failing_since.is_not(None))
                .values(failing_since=None)
                .execution_options(synchronize_session=False)
            )
        elif gone and webhook.enabled:
            disable(self._session, webhook.id, DisabledCode.GONE)
        elif webhook.failing_since is None:
            self._session.execute(update(WebhookRow).where(WebhookRow.id == webhook.id).values(failing_since=db_now()))
        elif not again and webhook.enabled and claim.now - webhook.failing_since > disable_after_seconds:
            disable(self._session, webhook.id, DisabledCode.FAILING)
        return state

    def release(self, claim: Claim) -> None:
        """Give the delivery back unsent; this attempt does not count."""
        self._move(
            claim,
            state=DeliveryState.WAITING,
            next_attempt_at=db_now(),
            attempts_left=DeliveryRow.attempts_left + 1,
        )
        error = {"code": "worker_stopped", "message": "The worker was shutting down and left it to another one."}
        self._end_attempt(claim, error=error)

    def sweep(self) -> None:
        """Take deliveries from workers whose lease ran out."""
        lost = self._session.execute(
            select(DeliveryRow.id, DeliveryRow.attempt, DeliveryRow.attempts_left)
            .where(DeliveryRow.state == DeliveryState.SENDING, DeliveryRow.lease_until < db_now())
            .limit(100)
            .with_for_update(skip_locked=True)
        ).all()
        for delivery_id, attempt, left in lost:
            claim = Claim(delivery_id, attempt, "", "", (), "", 0.0)
            again = left > 0
            self._move(
                claim,
                state=DeliveryState.WAITING if again else DeliveryState.FAILED,
                next_attempt_at=db_now() if again else None,
                finished_at=None if again else db_now(),
            )
            error = {"code": "worker_lost", "message": "The worker died; whether the event arrived is not known."}
            self._end_attempt(claim, error=error)
            count(self._session, WEBHOOK_ATTEMPTS, "worker_lost")

    def due(self) -> bool:
        """Whether something can be sent or swept now; cheap enough to ask often."""
        found = self._session.scalar(
            select(DeliveryRow.id)
            .where(
                or_(
                    and_(DeliveryRow.state == DeliveryState.WAITING, DeliveryRow.next_attempt_at <= db_now()),
                    and_(DeliveryRow.state == DeliveryState.SENDING, DeliveryRow.lease_until < db_now()),
                )
            )
            .limit(1)
        )
        return found is not None

    def seconds_until_due(self) -> float | None:
        """When the next delivery that is not due yet becomes so."""
        seconds = self._session.scalar(
            select(func.min(DeliveryRow.next_attempt_at) - db_now()).where(
                DeliveryRow.state == DeliveryState.WAITING, DeliveryRow.next_attempt_at > db_now()
            )
        )
        return None if seconds is None else float(seconds)

    def under_way(self) -> dict[str, int]:
        """Number of deliveries that have not ended, by state."""
        rows = self._session.execute(
            select(DeliveryRow.state, func.count())
            .where(DeliveryRow.state.in_([DeliveryState.WAITING, DeliveryState.SENDING]))
            .group_by(DeliveryRow.state)
        )
        return {state: count for state, count in rows}  # noqa: C416 - rows are no pairs to the type checker

    def overdue_seconds(self) -> float:
        """For how long the first delivery that could be sent has not been."""
        seconds = self._session.scalar(
            select(db_now() - func.min(DeliveryRow.next_attempt_at)).where(
                DeliveryRow.state == DeliveryState.WAITING, DeliveryRow.next_attempt_at <= db_now()
            )
        )
        return 0.0 if seconds is None else max(0.0, float(seconds))

    def _move(self, claim: Claim, **values: object) -> None:
        moved = self._session.scalar(
            update(DeliveryRow)
            .where(*_held(claim))
            .values(owner=None, lease_until=None, **values)
            .returning(DeliveryRow.id)
            .execution_options(synchronize_session=False)
        )
        if moved is None:
            raise _fenced(claim)

    def _end_attempt(self, claim: Claim, **values: object) -> None:
        self._session.execute(
            update(DeliveryAttemptRow)
            .where(DeliveryAttemptRow.delivery_id == claim.delivery_id, DeliveryAttemptRow.number == claim.attempt)
            .values(**values)
            .execution_options(synchronize_session=False)
        )


def _held(claim: Claim) -> tuple[ColumnElement[bool], ...]:
    return (
        DeliveryRow.id == claim.delivery_id,
        DeliveryRow.attempt == claim.attempt,
        DeliveryRow.state == DeliveryState.SENDING,
    )


def _backoff(attempts_left: int) -> float:
    """Seconds until the next attempt: the schedule's, give or take half, so that receivers are not all tried at once.

    Spread around the schedule rather than below it, as "full jitter" does, which would halve the 75 hours.
    """
    made = MAX_ATTEMPTS - attempts_left
    return BACKOFF_SECONDS[min(made, len(BACKOFF_SECONDS)) - 1] * random.uniform(0.5, 1.5)  # noqa: S311 - spreads attempts in time


def _fenced(claim: Claim) -> Fenced:
    return Fenced(f"Attempt {claim.attempt} of delivery {claim.delivery_id} is not this worker's any more.")
