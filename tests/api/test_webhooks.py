from __future__ import annotations

import pytest
from sqlalchemy import delete, update

from api.webhooks.schemas import Delivery, Webhook, WebhookSecret
from catalog.db import db_now
from catalog.settings import Settings
from catalog.webhooks.deliveries import Deliveries, Outcome
from catalog.webhooks.signatures import new_secret
from catalog.webhooks.states import EventType
from catalog.webhooks.tables import DeliveryRow, WebhookRow
from tests.api.harness import assert_problem, serve

URL = "https://example.com/hook"
DOWN = Outcome(
    duration_seconds=0.25, status=503, error_code="bad_status", error_message="It answered 503.", response="busy"
)
OK = Outcome(duration_seconds=0.5, status=204, response="")


@pytest.fixture(autouse=True)
def _no_webhooks(service):
    """Other tests' jobs are told to nobody."""
    yield
    with service.database.write() as session:
        session.execute(delete(WebhookRow))


def create(service, **fields) -> dict:
    return service.http.post("/v1/webhooks", json={"url": URL, **fields}).raise_for_status().json()


def send(service, outcome: Outcome) -> str:
    """What a worker does with the next delivery."""
    with service.database.write() as session:
        deliveries = Deliveries(session)
        claim = deliveries.claim(owner="worker", lease_seconds=60)
        deliveries.settle(claim, outcome, disable_after_seconds=1)
    return claim.delivery_id


def page(service, webhook_id, **query) -> dict:
    return service.http.get(f"/v1/webhooks/{webhook_id}/deliveries", params=query).raise_for_status().json()


def test_registering(service):
    response = service.http.post("/v1/webhooks", json={"url": "https://EXAMPLE.com", "description": "ci"})
    assert response.status_code == 201
    WebhookSecret.model_validate(response.json())
    webhook, secret = response.json()["webhook"], response.json()["secret"]
    assert response.headers["location"] == f"/v1/webhooks/{webhook['id']}"
    assert secret.startswith("whsec_")
    assert len(secret) == len(new_secret())
    assert (webhook["url"], webhook["description"], webhook["enabled"]) == ("https://example.com/", "ci", True)
    assert webhook["events"] == list(EventType)
    for shown in (service.http.get(webhook["links"]["self"]), service.http.get("/v1/webhooks")):
        assert shown.status_code == 200
        assert secret not in shown.text
    assert service.http.get("/v1/webhooks").json()["items"] == [webhook]
    assert service.http.get(webhook["links"]["self"]).json() == webhook


@pytest.mark.parametrize(
    ("body", "pointers"),
    [
        ({}, ["/url"]),
        ({"url": "https://127.0.0.1/"}, ["/url"]),
        ({"url": "https://[::ffff:10.0.0.1]/"}, ["/url"]),
        ({"url": "https://0x7f.1/"}, ["/url"]),
        ({"url": "https://localhost:9000/"}, ["/url"]),
        ({"url": "http://example.com/"}, ["/url"]),
        ({"url": "https://user:password@example.com/"}, ["/url"]),
        ({"url": URL, "events": []}, ["/events"]),
        ({"url": URL, "events": ["job.progress"]}, ["/events/0"]),
        ({"url": URL, "secret": "whsec_own"}, ["/secret"]),
    ],
)
def test_what_is_not_registered(service, body, pointers):
    assert_problem(service.http.post("/v1/webhooks", json=body), 422, "invalid_request", *pointers)
    assert service.rows(WebhookRow) == []


def test_a_limit(service, tmp_path):
    with serve(Settings(data_dir=tmp_path, max_webhooks=1)) as small:
        create(small)
        assert_problem(small.http.post("/v1/webhooks", json={"url": URL}), 409, "too_many_webhooks")
        secret = new_secret()
        assert small.submit(webhook={"url": URL, "secret": secret}).status_code == 202


def test_changing(service):
    webhook = create(service)["webhook"]
    path = webhook["links"]["self"]
    job = service.job()
    changed = service.http.patch(path, json={"url": "https://example.org/", "events": ["job.failed", "job.failed"]})
    assert changed.status_code == 200
    assert changed.json() == {**webhook, "url": "https://example.org/", "events": ["job.failed"]}
    # What waits goes to the new URL.
    with service.database.write() as session:
        assert Deliveries(session).claim(owner="worker", lease_seconds=60).url == "https://example.org/"
    assert_problem(service.http.patch(path, json={"url": "https://10.0.0.1/"}), 422, "invalid_request", "/url")
    assert_problem(service.http.patch(path, json={"job_id": job}), 422, "invalid_request", "/job_id")
    disabled = service.http.patch(path, json={"enabled": False, "description": None}).json()
    Webhook.model_validate(disabled)
    assert (disabled["enabled"], disabled["disabled_reason"]["code"]) == (False, "by_caller")
    assert_problem(service.http.post(f"{path}/test"), 409, "webhook_disabled")
    assert service.http.patch(path, json={"enabled": True}).json()["disabled_reason"] is None


def test_deleting(service):
    webhook = create(service)["webhook"]
    service.job()
    path = webhook["links"]["self"]
    assert service.http.delete(path).status_code == 204
    assert service.rows(DeliveryRow) == []
    for response in (
        service.http.get(path),
        service.http.delete(path),
        service.http.patch(path, json={}),
        service.http.post(f"{path}/rotate"),
        service.http.post(f"{path}/test"),
        service.http.get(f"{path}/deliveries"),
        service.http.post(f"{path}/deliveries/dlv_0/replay"),
    ):
        assert_problem(response, 404, "webhook_not_found")


def test_rotating(service):
    created = create(service)
    path = created["webhook"]["links"]["self"]
    rotated = service.http.post(f"{path}/rotate").raise_for_status().json()
    WebhookSecret.model_validate(rotated)
    assert rotated["secret"] != created["secret"]
    assert rotated["webhook"]["previous_secret_expires_at"] > created["webhook"]["created_at"]
    service.job()
    with service.database.write() as session:
        claim = Deliveries(session).claim(owner="worker", lease_seconds=60)
    assert claim.secrets == (rotated["secret"], created["secret"])


def test_the_log_of_deliveries(service):
    webhook_id = create(service, events=["job.queued", "job.cancelled"])["webhook"]["id"]
    job_id = service.job(labels={"commit": "4a4f8dc"})
    first = send(service, DOWN)
    service.http.post(f"/v1/jobs/{job_id}/cancel")
    second = send(service, OK)
    newest, oldest = page(service, webhook_id)["items"]
    for shown in (newest, oldest):
        Delivery.model_validate(shown)
    assert (newest["id"], newest["type"], newest["state"]) == (second, "job.cancelled", "delivered")
    assert (oldest["id"], oldest["type"], oldest["state"]) == (first, "job.queued", "waiting")
    assert oldest["payload"]["data"]["job"]["labels"] == {"commit": "4a4f8dc"}
    assert oldest["next_attempt_at"] > oldest["created_at"]
    (attempt,) = oldest["attempts"]
    assert (attempt["number"], attempt["status"], attempt["duration_seconds"]) == (1, 503, 0.25)
    assert (attempt["error"], attempt["response"]) == ({"code": "bad_status", "message": "It answered 503."}, "busy")
    assert newest["attempts"][0]["error"] is None
    assert service.http.get(f"/v1/webhooks/{webhook_id}").json()["failing_since"] is None
    pages = [page(service, webhook_id, limit=1)]
    pages.append(page(service, webhook_id, limit=1, cursor=pages[0]["next_cursor"]))
    assert [entry["id"] for one in pages for entry in one["items"]] == [second, first]
    assert pages[1]["next_cursor"] is None
    assert [entry["id"] for entry in page(service, webhook_id, state="waiting")["items"]] == [first]
    path = f"/v1/webhooks/{webhook_id}/deliveries"
    assert service.http.get(f"{path}/{first}").json() == oldest
    assert_problem(service.http.get(f"{path}/dlv_0"), 404, "delivery_not_found")


def test_replaying(service):
    webhook_id = create(service, events=["job.queued"])["webhook"]["id"]
    service.job()
    path = f"/v1/webhooks/{webhook_id}/deliveries/{send(service, OK)}"
    replayed = service.http.post(f"{path}/replay")
    assert (replayed.status_code, replayed.json()["state"]) == (202, "waiting")
    send(service, OK)
    shown = service.http.get(path).json()
    assert (shown["state"], [attempt["number"] for attempt in shown["attempts"]]) == ("delivered", [1, 2])
    with service.database.write() as session:
        session.execute(delete(DeliveryRow))
    assert_problem(service.http.post(f"{path}/replay"), 404, "delivery_not_found")


def test_testing(service):
    webhook_id = create(service, events=["job.failed"])["webhook"]["id"]
    response = service.http.post(f"/v1/webhooks/{webhook_id}/test")
    assert response.status_code == 202
    Delivery.model_validate(response.json())
    assert response.json()["payload"]["type"] == "webhook.ping"
    send(service, DOWN)
    (shown,) = page(service, webhook_id)["items"]
    # A test is tried once: whoever asked for it looks now.
    assert (shown["id"], shown["state"], shown["next_attempt_at"]) == (response.json()["id"], "failed", None)


def test_a_job_with_its_own_webhook(service):
    secret = new_secret()
    webhook = {"url": URL, "events": ["job.queued"], "secret": secret}
    response = service.submit(webhook=webhook)
    assert response.status_code == 202
    job_id = response.json()["id"]
    assert service.http.get("/v1/webhooks").json()["items"] == []
    listed = service.http.get("/v1/webhooks", params={"job_id": job_id})
    (own,) = listed.json()["items"]
    assert (own["url"], own["job_id"], own["events"]) == (URL, job_id, ["job.queued"])
    for shown in (response, listed, service.http.get(f"/v1/jobs/{job_id}"), service.http.get("/v1/jobs")):
        assert secret not in shown.text
    service.job()
    assert [entry["job_id"] for entry in page(service, own["id"])["items"]] == [job_id]


def test_a_jobs_webhook_is_checked(service):
    secret = new_secret()
    model = service.model()
    refused = service.submit(model, webhook={"url": "https://169.254.169.254/", "secret": secret})
    assert_problem(refused, 422, "invalid_request", "/webhook/url")
    for bad in ("whsec_short", "no prefix"):
        refused = service.submit(model, webhook={"url": URL, "secret": bad})
        assert_problem(refused, 422, "invalid_request", "/webhook/secret")
        assert bad not in refused.text
    assert_problem(service.submit(model, webhook={"url": URL}), 422, "invalid_request", "/webhook/secret")
    assert service.http.get("/v1/jobs", params={"model_id": model}).json()["items"] == []


def test_the_same_key_makes_one_job_and_one_webhook(service):
    body = {"model_id": service.model(), "pipeline": [{"type": "prune", "amount": 0.5}]}
    body["webhook"] = {"url": URL, "secret": new_secret()}
    first, second = (service.http.post("/v1/jobs", json=body, headers={"idempotency-key": "webhook"}) for _ in range(2))
    assert first.json()["id"] == second.json()["id"]
    assert len(service.rows(WebhookRow)) == 1
    assert len(service.rows(DeliveryRow)) == 1


def test_metrics_of_deliveries(service):
    create(service, events=["job.queued"])
    for _ in range(2):
        service.job()
    with service.database.write() as session:
        Deliveries(session).claim(owner="worker", lease_seconds=60)
        session.execute(
            update(DeliveryRow).where(DeliveryRow.state == "waiting").values(next_attempt_at=db_now() - 100)
        )
    lines = service.http.get("/metrics").text.splitlines()
    assert 'levity_webhook_deliveries{state="waiting"} 1.0' in lines
    assert 'levity_webhook_deliveries{state="sending"} 1.0' in lines
    (overdue,) = [line for line in lines if line.startswith("levity_webhook_overdue_seconds ")]
    assert float(overdue.split()[1]) == pytest.approx(100, abs=20)
