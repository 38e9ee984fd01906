"""What can be done with webhooks."""

from __future__ import annotations

from sqlalchemy.orm import Session

from api.dependencies import PageRequest, Services
from api.errors import InvalidField
from api.webhooks.schemas import CreateWebhook, JobWebhook, UpdateWebhook, delivery_json, webhook_json
from catalog.db import Json
from catalog.errors import Conflict
from catalog.settings import Settings
from catalog.webhooks.addresses import UrlRefused, check
from catalog.webhooks.repository import NewWebhook, Webhooks
from catalog.webhooks.states import DeliveryState
from catalog.webhooks.tables import DeliveryRow


class WebhookService:
    """Webhooks of one process."""

    def __init__(self, services: Services) -> None:
        self._settings = services.settings
        self._database = services.database

    def create(self, body: CreateWebhook) -> Json:
        url = checked_url(body.url, self._settings)
        with self._database.write() as session:
            webhooks = Webhooks(session)
            if webhooks.count() >= self._settings.max_webhooks:
                raise Conflict(
                    f"There are {self._settings.max_webhooks} webhooks already (LEVITY_MAX_WEBHOOKS); "
                    "delete one, or name the receiver in each job.",
                    code="too_many_webhooks",
                )
            row = webhooks.add(NewWebhook(url, body.events, description=body.description, enabled=body.enabled))
        return {"webhook": webhook_json(row), "secret": row.secret}

    def get(self, webhook_id: str) -> Json:
        with self._database.read() as session:
            return webhook_json(Webhooks(session).get(webhook_id))

    def list(self, page: PageRequest, *, job_id: str | None) -> Json:
        with self._database.read() as session:
            rows = Webhooks(session).page(limit=page.limit + 1, before_id=page.before_id, job_id=job_id)
        return page.answer(rows, [webhook_json(row) for row in rows])

    def update(self, webhook_id: str, body: UpdateWebhook) -> Json:
        values = body.model_dump(mode="json", exclude_none=True)
        if body.url is not None:
            values["url"] = checked_url(body.url, self._settings)
        with self._database.write() as session:
            webhooks = Webhooks(session)
            return webhook_json(webhooks.change(webhooks.get(webhook_id, lock=True), values))

    def rotate(self, webhook_id: str) -> Json:
        with self._database.write() as session:
            webhooks = Webhooks(session)
            row = webhooks.get(webhook_id, lock=True)
            row = webhooks.rotate(row, overlap_seconds=self._settings.webhook_secret_overlap_seconds)
            return {"webhook": webhook_json(row), "secret": row.secret}

    def delete(self, webhook_id: str) -> None:
        with self._database.write() as session:
            webhooks = Webhooks(session)
            webhooks.delete(webhooks.get(webhook_id, lock=True))

    def test(self, webhook_id: str) -> Json:
        with self._database.write() as session:
            return _delivery(session, Webhooks(session).ping(webhook_id))

    def deliveries(self, webhook_id: str, page: PageRequest, *, state: DeliveryState | None) -> Json:
        with self._database.read() as session:
            webhooks = Webhooks(session)
            webhooks.get(webhook_id)
            rows = webhooks.deliveries(webhook_id, limit=page.limit + 1, before_id=page.before_id, state=state)
            attempts = webhooks.attempts_of([row.id for row in rows])
        return page.answer(rows, [delivery_json(row, attempts[row.id]) for row in rows])

    def delivery(self, webhook_id: str, delivery_id: str) -> Json:
        with self._database.read() as session:
            return _delivery(session, Webhooks(session).delivery(webhook_id, delivery_id))

    def replay(self, webhook_id: str, delivery_id: str) -> Json:
        with self._database.write() as session:
            return _delivery(session, Webhooks(session).replay(webhook_id, delivery_id))


def job_webhook(body: JobWebhook, settings: Settings) -> NewWebhook:
    """The receiver that a job names, checked."""
    return NewWebhook(checked_url(body.url, settings, pointer="/webhook/url"), body.events, secret=body.secret)


def checked_url(url: str, settings: Settings, *, pointer: str = "/url") -> str:
    """The URL as it is kept; refused when it can be seen to lead nowhere that webhooks may go."""
    try:
        return check(url, settings.webhook_policy).url
    except UrlRefused as error:
        raise InvalidField(pointer, f"{error}.", code="url_refused") from error


def _delivery(session: Session, row: DeliveryRow) -> Json:
    return delivery_json(row, Webhooks(session).attempts_of([row.id])[row.id])
