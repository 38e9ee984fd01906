"""What is said about webhooks."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, AwareDatetime, ConfigDict, Field

from api.dependencies import Body, Document, Page
from catalog.db import Json
from catalog.times import rfc3339
from catalog.webhooks.addresses import MAX_URL_CHARACTERS
from catalog.webhooks.signatures import secret_problem
from catalog.webhooks.states import DeliveryState, DisabledCode, EventType
from catalog.webhooks.tables import DeliveryAttemptRow, DeliveryRow, WebhookRow

_ID = "whk_0193f0c2a6b77c0d8a4be21d09f1a2b3"


def _once(events: tuple[EventType, ...]) -> tuple[EventType, ...]:
    return tuple(dict.fromkeys(events))


def _usable(secret: str) -> str:
    problem = secret_problem(secret)
    if problem is not None:
        raise ValueError(problem)
    return secret


WebhookUrl = Annotated[str, Field(max_length=MAX_URL_CHARACTERS, examples=["https://example.com/levity"])]
Events = Annotated[tuple[EventType, ...], AfterValidator(_once), Field(min_length=1, max_length=32)]
Secret = Annotated[str, AfterValidator(_usable), Field(max_length=128, json_schema_extra={"writeOnly": True})]


class CreateWebhook(Body):
    """Registers a receiver of the events of all jobs."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "url": "https://example.com/levity",
                    "events": ["job.succeeded", "job.failed", "job.expired"],
                    "description": "deploys what is small enough",
                }
            ]
        }
    )

    url: WebhookUrl
    """Where events are posted: `https://` and a public host, unless the operator allows more."""
    events: Events = tuple(EventType)
    """What it hears of; everything unless given."""
    description: str = Field(default="", max_length=255)
    enabled: bool = True


class UpdateWebhook(Body):
    """Changes a webhook; what is absent or null stays as it is."""

    model_config = ConfigDict(json_schema_extra={"examples": [{"enabled": False}, {"events": ["job.failed"]}]})

    url: WebhookUrl | None = None
    events: Events | None = None
    description: str | None = Field(default=None, max_length=255)
    enabled: bool | None = None
    """False also ends what waits to be sent; true forgets why it was disabled."""


class JobWebhook(Body):
    """A receiver of one job's events."""

    url: WebhookUrl
    """Where events are posted: `https://` and a public host, unless the operator allows more."""
    secret: Secret
    """Signs the events: `whsec_` and the base64 of 24 to 64 random bytes. Never returned."""
    events: Events = tuple(EventType)
    """What it hears of; everything unless given."""


class DisabledReason(Document):
    """Why nothing is sent."""

    code: DisabledCode
    message: str
    at: AwareDatetime


class WebhookLinks(Document):
    self: str
    deliveries: str


class Webhook(Document):
    """A receiver of events."""

    model_config = ConfigDict(
        json_schema_extra={
            "examples": [
                {
                    "id": _ID,
                    "job_id": None,
                    "url": "https://example.com/levity",
                    "events": ["job.succeeded", "job.failed", "job.expired"],
                    "description": "deploys what is small enough",
                    "enabled": True,
                    "disabled_reason": None,
                    "failing_since": None,
                    "previous_secret_expires_at": None,
                    "created_at": "2026-11-24T17:23:35.816Z",
                    "links": {"self": f"/v1/webhooks/{_ID}", "deliveries": f"/v1/webhooks/{_ID}/deliveries"},
                }
            ]
        }
    )

    id: str
    job_id: str | None
    """The only job that it hears of; null for all."""
    url: str
    events: list[EventType]
    description: str
    enabled: bool
    disabled_reason: DisabledReason | None
    failing_since: AwareDatetime | None
    """The first attempt that failed since the last one that did not."""
    previous_secret_expires_at: AwareDatetime | None
    """Until then the secret before the last rotation signs too."""
    created_at: AwareDatetime
    links: WebhookLinks


class WebhookSecret(Document):
    """A webhook with its secret, which is not shown again."""

    webhook: Webhook
    secret: str
    """`whsec_` and base64: what the receiver verifies signatures with."""


class WebhookPage(Page):
    items: list[Webhook]


class DeliveryError(Document):
    """Why an attempt failed."""

    code: Literal[
        "address_refused",
        "bad_response",
        "bad_status",
        "connection_failed",
        "name_not_resolved",
        "redirected",
        "timeout",
        "tls_failed",
        "url_refused",
        "worker_lost",
        "worker_stopped",
    ]
    message: str


class DeliveryAttempt(Document):
    """One try at a delivery."""

    number: int
    started_at: AwareDatetime
    duration_seconds: float | None
    """Null while it is under way, and when its worker was lost."""
    status: int | None
    """HTTP status of the answer."""
    error: DeliveryError | None
    response: str | None
    """How the answer's body begins."""


class Delivery(Document):
    """An event on its way to a webhook."""

    id: str
    """The header `webhook-id`, the same over all attempts and replays: receivers know by it what they have seen."""
    webhook_id: str
    job_id: str | None
    type: EventType | Literal["webhook.ping"]
    state: DeliveryState
    payload: dict[str, Any]
    """The body that is sent."""
    attempts: list[DeliveryAttempt]
    next_attempt_at: AwareDatetime | None
    created_at: AwareDatetime
    finished_at: AwareDatetime | None


class DeliveryPage(Page):
    items: list[Delivery]


def webhook_json(row: WebhookRow) -> Json:
    url = f"/v1/webhooks/{row.id}"
    return {
        "id": row.id,
        "job_id": row.job_id,
        "url": row.url,
        "events": row.events,
        "description": row.description,
        "enabled": row.enabled,
        "disabled_reason": row.disabled and {**row.disabled, "at": rfc3339(row.disabled["at"])},
        "failing_since": rfc3339(row.failing_since),
        "previous_secret_expires_at": rfc3339(row.previous_secret_until),
        "created_at": rfc3339(row.created_at),
        "links": {"self": url, "deliveries": f"{url}/deliveries"},
    }


def delivery_json(row: DeliveryRow, attempts: Sequence[DeliveryAttemptRow]) -> Json:
    return {
        "id": row.id,
        "webhook_id": row.webhook_id,
        "job_id": row.job_id,
        "type": row.type,
        "state": row.state,
        "payload": json.loads(row.payload),
        "attempts": [
            {
                "number": attempt.number,
                "started_at": rfc3339(attempt.started_at),
                "duration_seconds": attempt.duration_seconds,
                "status": attempt.status,
                "error": attempt.error,
                "response": attempt.response,
            }
            for attempt in attempts
        ],
        "next_attempt_at": rfc3339(row.next_attempt_at),
        "created_at": rfc3339(row.created_at),
        "finished_at": rfc3339(row.finished_at),
    }
