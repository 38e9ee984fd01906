"""All SQL about webhooks that callers ask for. What senders do is in `deliveries`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import delete, exists, func, select, update
from sqlalchemy.orm import Session

from catalog.audit.repository import note
from catalog.db import db_now, newest_first, note_outbox, read_clock
from catalog.errors import Conflict, NotFound
from catalog.ids import new_id
from catalog.jobs.tables import JobRow
from catalog.webhooks import outbox
from catalog.webhooks.addresses import lane_of
from catalog.webhooks.signatures import new_secret
from catalog.webhooks.states import MAX_ATTEMPTS, PING, DeliveryState, DisabledCode, EventType
from catalog.webhooks.tables import DeliveryAttemptRow, DeliveryRow, WebhookRow


@dataclass(frozen=True)
class NewWebhook:
    """What a caller asks for, checked."""

    url: str
    events: Sequence[EventType]
    description: str = ""
    enabled: bool = True
    secret: str | None = None
    """One is made when none is given."""


class Webhooks:
    def __init__(self, session: Session) -> None:
        self._session = session

    def add(self, new: NewWebhook, *, job_id: str | None = None) -> WebhookRow:
        """Note a webhook of all jobs, or of one."""
        row = WebhookRow(
            id=new_id("whk"),
            job_id=job_id,
            url=new.url,
            events=[str(event) for event in new.events],
            description=new.description,
            enabled=True,
            secret=new.secret or new_secret(),
            created_at=db_now(),
        )
        self._session.add(row)
        self._session.flush()
        if not new.enabled:
            disable(self._session, row.id, DisabledCode.BY_CALLER)
        note(self._session, "webhook.created", row.id)
        self._session.refresh(row)
        return row

    def get(self, webhook_id: str, *, lock: bool = False) -> WebhookRow:
        """The webhook; `lock` keeps others from changing it until the transaction ends."""
        query = select(WebhookRow).where(WebhookRow.id == webhook_id)
        if lock:
            query = query.with_for_update(key_share=True)
        row = self._session.scalars(query).one_or_none()
        if row is None:
            raise NotFound(f"There is no webhook {webhook_id}.", code="webhook_not_found")
        return row

    def get_enabled(self, webhook_id: str) -> WebhookRow:
        """The webhook, locked; refused while it is disabled."""
        row = self.get(webhook_id, lock=True)
        if not row.enabled:
            reason = (row.disabled or {}).get("message", "")
            raise Conflict(f"Webhook {webhook_id} is disabled: {reason} Enable it first.", code="webhook_disabled")
        return row

    def page(self, *, limit: int, before_id: str | None = None, job_id: str | None = None) -> Sequence[WebhookRow]:
        """Those of all jobs, or with `job_id` those that hear of this job alone; newest first."""
        query = newest_first(select(WebhookRow), WebhookRow.id, limit=limit, before_id=before_id)
        query = query.where(WebhookRow.job_id.is_(None) if job_id is None else WebhookRow.job_id == job_id)
        return self._session.scalars(query).all()

    def count(self) -> int:
        """How many hear of all jobs."""
        return (
            self._session.scalar(select(func.count()).select_from(WebhookRow).where(WebhookRow.job_id.is_(None))) or 0
        )

    def change(self, row: WebhookRow, values: Mapping[str, object]) -> WebhookRow:
        """Set `url`, `events`, `description` or `enabled`.

        What waits goes to the new URL. Disabling ends what waits; enabling forgets what went wrong before.
        """
        kept = {name: value for name, value in values.items() if name != "enabled"}
        if values.get("enabled") is True:
            kept |= {"enabled": True, "disabled": None, "failing_since": None}
        if kept:
            self._session.execute(update(WebhookRow).where(WebhookRow.id == row.id).values(**kept))
        if "url" in values:
            self._session.execute(
                update(DeliveryRow)
                .where(DeliveryRow.webhook_id == row.id)
                .values(lane=lane_of(str(values["url"])))
                .execution_options(synchronize_session=False)
            )
        if values.get("enabled") is False and row.enabled:
            disable(self._session, row.id, DisabledCode.BY_CALLER)
        note(self._session, "webhook.changed", row.id)
        self._session.refresh(row)
        return row

    def rotate(self, row: WebhookRow, *, overlap_seconds: float) -> WebhookRow:
        """Sign with a new secret, and for `overlap_seconds` with the one so far too."""
        self._session.execute(
            update(WebhookRow)
            .where(WebhookRow.id == row.id)
            .values(
                secret=new_secret(),
                previous_secret=row.secret,
                previous_secret_until=db_now() + overlap_seconds,
            )
        )
        note(self._session, "webhook.rotated", row.id)
        self._session.refresh(row)
        return row

    def delete(self, row: WebhookRow) -> None:
        """Forget the webhook and its deliveries."""
        self._session.execute(delete(WebhookRow).where(WebhookRow.id == row.id))
        note(self._session, "webhook.deleted", row.id)

    def ping(self, webhook_id: str) -> DeliveryRow:
        """Send a test event."""
        row = self.get_enabled(webhook_id)
        note(self._session, "webhook.tested", webhook_id)
        return outbox.ping(self._session, row, now=read_clock(self._session))

    def delivery(self, webhook_id: str, delivery_id: str, *, lock: bool = False) -> DeliveryRow:
        # Through the webhook, which belongs to a tenant.
        query = select(DeliveryRow).join(WebhookRow, WebhookRow.id == DeliveryRow.webhook_id)
        query = query.where(DeliveryRow.id == delivery_id, WebhookRow.id == webhook_id)
        row = self._session.scalars(query.with_for_update(of=DeliveryRow) if lock else query).one_or_none()
        if row is None:
            raise NotFound(f"Webhook {webhook_id} has no delivery {delivery_id}.", code="delivery_not_found")
        return row

    def deliveries(
        self, webhook_id: str, *, limit: int, before_id: str | None = None, state: DeliveryState | None = None
    ) -> Sequence[DeliveryRow]:
        """Newest first, those older than `before_id`."""
        query = select(DeliveryRow).where(DeliveryRow.webhook_id == webhook_id)
        query = newest_first(query, DeliveryRow.id, limit=limit, before_id=before_id)
        if state is not None:
            query = query.where(DeliveryRow.state == state)
        return self._session.scalars(query).all()

    def attempts_of(self, delivery_ids: Sequence[str]) -> dict[str, list[DeliveryAttemptRow]]:
        """Attempts at several deliveries in one query, oldest first."""
        found: dict[str, list[DeliveryAttemptRow]] = {delivery_id: [] for delivery_id in delivery_ids}
        rows = self._session.scalars(
            select(DeliveryAttemptRow)
            .where(DeliveryAttemptRow.delivery_id.in_(delivery_ids))
            .order_by(DeliveryAttemptRow.number)
        )
        for row in rows:
            found[row.delivery_id].append(row)
        return found

    def replay(self, webhook_id: str, delivery_id: str) -> DeliveryRow:
        """Send a delivery again, at once, under the same id; it gets all attempts anew."""
        self.get_enabled(webhook_id)
        row = self.delivery(webhook_id, delivery_id, lock=True)
        if row.state == DeliveryState.SENDING:
            raise Conflict(f"Delivery {delivery_id} is being sent at this moment.", code="delivery_in_flight")
        self._session.execute(
            update(DeliveryRow)
            .where(DeliveryRow.id == delivery_id)
            .values(
                state=DeliveryState.WAITING,
                attempts_left=1 if row.type == PING else MAX_ATTEMPTS,
                next_attempt_at=db_now(),
                finished_at=None,
            )
        )
        note(self._session, "delivery.replayed", delivery_id)
        note_outbox(self._session)
        self._session.refresh(row)
        return row

    def prune(self, *, older_than_seconds: float) -> None:
        """Forget deliveries that ended so long ago, and webhooks of single jobs that are gone."""
        before = db_now() - older_than_seconds
        self._session.execute(delete(DeliveryRow).where(DeliveryRow.finished_at < before))
        self._session.execute(
            delete(WebhookRow).where(
                WebhookRow.job_id.is_not(None),
                WebhookRow.created_at < before,
                ~exists().where(JobRow.id == WebhookRow.job_id),
                ~exists().where(DeliveryRow.webhook_id == WebhookRow.id),
            )
        )


_MESSAGES = {
    DisabledCode.BY_CALLER: "It was disabled by a caller.",
    DisabledCode.GONE: "The receiver answered 410 Gone.",
    DisabledCode.FAILING: "Nothing could be delivered for days.",
}


def disable(session: Session, webhook_id: str, code: DisabledCode) -> None:
    """Send nothing more to a webhook, and end what waits for it."""
    now = read_clock(session)
    session.execute(
        update(WebhookRow)
        .where(WebhookRow.id == webhook_id)
        .values(enabled=False, disabled={"code": code, "message": _MESSAGES[code], "at": now})
        .execution_options(synchronize_session=False)
    )
    session.execute(
        update(DeliveryRow)
        .where(DeliveryRow.webhook_id == webhook_id, DeliveryRow.state == DeliveryState.WAITING)
        .values(state=DeliveryState.FAILED, next_attempt_at=None, finished_at=now)
        .execution_options(synchronize_session=False)
    )
