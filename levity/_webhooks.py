"""The client's part about webhooks."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from levity._transport import Transport
from levity.resources import Delivery, Webhook


class WebhookMethods:
    """Webhooks of all jobs. A job's own is named in `submit` and found with `webhooks(job_id=…)`."""

    _http: Transport

    def create_webhook(
        self, url: str, *, events: Sequence[str] | None = None, description: str = "", enabled: bool = True
    ) -> Webhook:
        """Register a receiver of events. Keep its `secret`: it is not shown again.

        Args:
            url: Where events are posted.
            events: What it hears of, such as `job.succeeded`; everything unless given.
            description: What people know it by.
            enabled: Whether anything is sent.
        """
        body = {"url": url, "description": description, "enabled": enabled}
        if events is not None:
            body["events"] = list(events)
        return _with_secret(self._http.request("POST", "/v1/webhooks", json=body).json())

    def webhooks(self, *, job_id: str | None = None) -> Iterator[Webhook]:
        """Webhooks of all jobs, or those that one job was submitted with; newest first."""
        for item in self._http.pages("/v1/webhooks", {"job_id": job_id}):
            yield Webhook.from_json(item)

    def get_webhook(self, webhook_id: str) -> Webhook:
        return Webhook.from_json(self._http.request("GET", f"/v1/webhooks/{webhook_id}").json())

    def update_webhook(
        self,
        webhook_id: str,
        *,
        url: str | None = None,
        events: Sequence[str] | None = None,
        description: str | None = None,
        enabled: bool | None = None,
    ) -> Webhook:
        """Change what is given; disabling also ends what waits to be sent."""
        known = {"url": url, "events": events and list(events), "description": description, "enabled": enabled}
        body = {name: value for name, value in known.items() if value is not None}
        answer = self._http.request("PATCH", f"/v1/webhooks/{webhook_id}", json=body, repeatable=True)
        return Webhook.from_json(answer.json())

    def delete_webhook(self, webhook_id: str) -> None:
        """Forget a webhook and its deliveries."""
        self._http.request("DELETE", f"/v1/webhooks/{webhook_id}")

    def rotate_webhook_secret(self, webhook_id: str) -> Webhook:
        """Have a new secret made. The one so far signs too until `previous_secret_expires_at`."""
        return _with_secret(self._http.request("POST", f"/v1/webhooks/{webhook_id}/rotate").json())

    def test_webhook(self, webhook_id: str) -> Delivery:
        """Send a `webhook.ping`, once."""
        return Delivery.from_json(self._http.request("POST", f"/v1/webhooks/{webhook_id}/test").json())

    def deliveries(self, webhook_id: str, *, state: str | None = None) -> Iterator[Delivery]:
        """What was sent to a webhook, with each attempt, newest first."""
        for item in self._http.pages(f"/v1/webhooks/{webhook_id}/deliveries", {"state": state}):
            yield Delivery.from_json(item)

    def get_delivery(self, webhook_id: str, delivery_id: str) -> Delivery:
        path = f"/v1/webhooks/{webhook_id}/deliveries/{delivery_id}"
        return Delivery.from_json(self._http.request("GET", path).json())

    def replay_delivery(self, webhook_id: str, delivery_id: str) -> Delivery:
        """Send an event again, at once, under the same id."""
        path = f"/v1/webhooks/{webhook_id}/deliveries/{delivery_id}/replay"
        return Delivery.from_json(self._http.request("POST", path).json())


def _with_secret(answer: dict[str, object]) -> Webhook:
    webhook = answer["webhook"]
    if not isinstance(webhook, dict):
        raise TypeError("the service answered with something that is no webhook")
    return Webhook.from_json({**webhook, "secret": answer["secret"]})
