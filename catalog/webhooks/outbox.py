"""Events on their way out, written in the transaction of the change that they tell of.

So a change that is rolled back is told to nobody, and one that is committed is told to everybody it concerns, whatever
dies afterwards.
"""

from __future__ import annotations

import json
from dataclasses import dataclass

from sqlalchemy import bindparam, or_, select
from sqlalchemy.orm import Session

from catalog.db import Json, note_outbox
from catalog.ids import new_id
from catalog.times import rfc3339
from catalog.webhooks.addresses import lane_of
from catalog.webhooks.states import EVENT_OF_STATE, MAX_ATTEMPTS, PING, DeliveryState
from catalog.webhooks.tables import DeliveryRow, WebhookRow

# Built once: every change of a job's state asks for it.
_LISTENERS = (
    select(WebhookRow.id, WebhookRow.url, WebhookRow.events)
    .where(
        WebhookRow.tenant == bindparam("tenant"),
        WebhookRow.enabled,
        or_(WebhookRow.job_id.is_(None), WebhookRow.job_id == bindparam("job_id")),
    )
    .order_by(WebhookRow.id)
    # Against deletion: the job's change must not fail because a webhook went away meanwhile.
    .with_for_update(read=True, key_share=True)
)


@dataclass(frozen=True, kw_only=True)
class JobFacts:
    """What a receiver is told of a job: small, since it can ask for the rest."""

    id: str
    tenant: str
    name: str
    labels: Json
    model_id: str | None
    queue: str
    state: str
    attempt: int
    created_at: float
    started_at: float | None
    finished_at: float | None
    error: Json | None


def tell_of_job(session: Session, job: JobFacts, *, now: float) -> None:
    """Put the job's new state into the outbox, once for each webhook that wants to hear of it."""
    event = EVENT_OF_STATE[job.state]
    webhooks = session.execute(_LISTENERS, {"tenant": job.tenant, "job_id": job.id}).all()
    wanted = [(webhook_id, url) for webhook_id, url, events in webhooks if event in events]
    if not wanted:
        return
    payload = _payload(event, {"job": _job_json(job)}, now)
    for webhook_id, url in wanted:
        _add(session, webhook_id, url, event, payload, now=now, job_id=job.id)


def ping(session: Session, webhook: WebhookRow, *, now: float) -> DeliveryRow:
    """Put a test event into the outbox; it is tried once."""
    payload = _payload(PING, {"webhook": {"id": webhook.id, "description": webhook.description}}, now)
    return _add(session, webhook.id, webhook.url, PING, payload, now=now, attempts=1)


def _add(
    session: Session,
    webhook_id: str,
    url: str,
    type_: str,
    payload: str,
    *,
    now: float,
    job_id: str | None = None,
    attempts: int = MAX_ATTEMPTS,
) -> DeliveryRow:
    row = DeliveryRow(
        id=new_id("dlv"),
        webhook_id=webhook_id,
        type=type_,
        job_id=job_id,
        payload=payload,
        lane=lane_of(url),
        state=DeliveryState.WAITING,
        attempts_left=attempts,
        next_attempt_at=now,
        created_at=now,
    )
    session.add(row)
    session.flush()
    note_outbox(session)
    return row


def _payload(type_: str, data: Json, now: float) -> str:
    return json.dumps({"type": str(type_), "timestamp": rfc3339(now), "data": data}, separators=(",", ":"))


def _job_json(job: JobFacts) -> Json:
    url = f"/v1/jobs/{job.id}"
    kept = ("code", "message", "retryable", "attempt")
    return {
        "id": job.id,
        "name": job.name,
        "labels": job.labels,
        "model_id": job.model_id,
        "queue": job.queue,
        "state": job.state,
        "attempt": job.attempt,
        "created_at": rfc3339(job.created_at),
        "started_at": rfc3339(job.started_at),
        "finished_at": rfc3339(job.finished_at),
        "error": job.error and {name: job.error.get(name) for name in kept},
        "links": {"self": url, "events": f"{url}/events", "artifacts": f"{url}/artifacts"},
    }
