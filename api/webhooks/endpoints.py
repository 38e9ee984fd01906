"""`/v1/webhooks`: receivers of events, and what was sent to them."""

from __future__ import annotations

from http import HTTPStatus
from typing import Annotated

from fastapi import APIRouter, Depends, Query
from starlette.responses import Response

from api.dependencies import Key, PageParameters, ServicesParameter
from api.json_body import Json, JsonRoute
from api.openapi import problems
from api.webhooks.schemas import (
    CreateWebhook,
    Delivery,
    DeliveryPage,
    UpdateWebhook,
    Webhook,
    WebhookPage,
    WebhookSecret,
)
from api.webhooks.service import WebhookService
from catalog.webhooks.states import DeliveryState

router = APIRouter(prefix="/v1/webhooks", tags=["webhooks"], route_class=JsonRoute)


async def _service(services: ServicesParameter) -> WebhookService:
    return WebhookService(services)


Webhooks = Annotated[WebhookService, Depends(_service)]


@router.post(
    "",
    operation_id="create_webhook",
    summary="Register a receiver of events",
    status_code=HTTPStatus.CREATED,
    response_model=WebhookSecret,
    responses={
        201: {"headers": {"Location": {"schema": {"type": "string"}}}},
        **problems("too_many_webhooks", body=True),
    },
)
def create_webhook(body: CreateWebhook, webhooks: Webhooks) -> Json:
    """The answer has the secret that signs its events; it is shown this once."""
    created = webhooks.create(body)
    return Json(created, HTTPStatus.CREATED, {"location": f"/v1/webhooks/{created['webhook']['id']}"})


@router.get(
    "",
    operation_id="list_webhooks",
    summary="Webhooks, newest first",
    response_model=WebhookPage,
    responses=problems("invalid_request"),
)
def list_webhooks(
    page: PageParameters,
    webhooks: Webhooks,
    job_id: Annotated[
        Key | None, Query(description="Those that this job was submitted with, instead of those of all jobs.")
    ] = None,
) -> Json:
    return Json(webhooks.list(page, job_id=job_id))


@router.get(
    "/{webhook_id}",
    operation_id="get_webhook",
    summary="A webhook and how it fares",
    response_model=Webhook,
    responses=problems("webhook_not_found", "invalid_request"),
)
def get_webhook(webhook_id: Key, webhooks: Webhooks) -> Json:
    return Json(webhooks.get(webhook_id))


@router.patch(
    "/{webhook_id}",
    operation_id="update_webhook",
    summary="Change a webhook, disable or enable it",
    response_model=Webhook,
    responses=problems("webhook_not_found", body=True),
)
def update_webhook(webhook_id: Key, body: UpdateWebhook, webhooks: Webhooks) -> Json:
    """What waits to be sent goes to the new URL."""
    return Json(webhooks.update(webhook_id, body))


@router.delete(
    "/{webhook_id}",
    operation_id="delete_webhook",
    summary="Forget a webhook and its deliveries",
    status_code=HTTPStatus.NO_CONTENT,
    response_class=Response,
    responses=problems("webhook_not_found", "invalid_request"),
)
def delete_webhook(webhook_id: Key, webhooks: Webhooks) -> Response:
    webhooks.delete(webhook_id)
    return Response(status_code=HTTPStatus.NO_CONTENT)


@router.post(
    "/{webhook_id}/rotate",
    operation_id="rotate_webhook_secret",
    summary="Give a webhook a new secret",
    response_model=WebhookSecret,
    responses=problems("webhook_not_found", "invalid_request"),
)
def rotate_webhook_secret(webhook_id: Key, webhooks: Webhooks) -> Json:
    """The new secret is shown this once. Until `previous_secret_expires_at` the one so far signs too."""
    return Json(webhooks.rotate(webhook_id))


@router.post(
    "/{webhook_id}/test",
    operation_id="test_webhook",
    summary="Send a test event",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Delivery,
    responses=problems("webhook_not_found", "webhook_disabled", "invalid_request"),
)
def test_webhook(webhook_id: Key, webhooks: Webhooks) -> Json:
    """Of type `webhook.ping`, whatever the webhook's filter; it is tried once."""
    return Json(webhooks.test(webhook_id), HTTPStatus.ACCEPTED)


@router.get(
    "/{webhook_id}/deliveries",
    operation_id="list_webhook_deliveries",
    summary="What was sent to a webhook, newest first",
    response_model=DeliveryPage,
    responses=problems("webhook_not_found", "invalid_request"),
)
def list_webhook_deliveries(
    webhook_id: Key,
    page: PageParameters,
    webhooks: Webhooks,
    state: Annotated[DeliveryState | None, Query(description="Only deliveries in this state.")] = None,
) -> Json:
    return Json(webhooks.deliveries(webhook_id, page, state=state))


@router.get(
    "/{webhook_id}/deliveries/{delivery_id}",
    operation_id="get_webhook_delivery",
    summary="A delivery and its attempts",
    response_model=Delivery,
    responses=problems("delivery_not_found", "invalid_request"),
)
def get_webhook_delivery(webhook_id: Key, delivery_id: Key, webhooks: Webhooks) -> Json:
    return Json(webhooks.delivery(webhook_id, delivery_id))


@router.post(
    "/{webhook_id}/deliveries/{delivery_id}/replay",
    operation_id="replay_webhook_delivery",
    summary="Send an event again",
    status_code=HTTPStatus.ACCEPTED,
    response_model=Delivery,
    responses=problems(
        "webhook_not_found", "delivery_not_found", "webhook_disabled", "delivery_in_flight", "invalid_request"
    ),
)
def replay_webhook_delivery(webhook_id: Key, delivery_id: Key, webhooks: Webhooks) -> Json:
    """At once, under the same `webhook-id`, with all attempts anew."""
    return Json(webhooks.replay(webhook_id, delivery_id), HTTPStatus.ACCEPTED)
