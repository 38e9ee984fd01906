"""Events on their way through real processes to a real receiver."""

from __future__ import annotations

import httpx
import pytest

from tests.acceptance.processes import eventually
from tests.receiver import Receiver


@pytest.fixture
def http(service):
    with httpx.Client(base_url=service.client.base_url, trust_env=False) as client:
        yield client


@pytest.fixture
def receiver():
    with Receiver() as receiver:
        yield receiver


@pytest.fixture
def register(http):
    """Registers webhooks, and forgets them afterwards."""
    made = []

    def register(url, **fields):
        created = http.post("/v1/webhooks", json={"url": url, **fields}).raise_for_status().json()
        made.append(created["webhook"]["id"])
        return created["webhook"]["id"], created["secret"]

    yield register
    for webhook_id in made:
        http.delete(f"/v1/webhooks/{webhook_id}").raise_for_status()


def deliveries(http, webhook_id):
    return http.get(f"/v1/webhooks/{webhook_id}/deliveries").raise_for_status().json()["items"]


def test_a_job_from_queued_to_succeeded(service, inputs, http, receiver, register):
    webhook_id, secret = register(receiver.url)
    job = service.client.wait(inputs.submit(labels={"commit": "4a4f8dc"}).id, timeout=60)
    service.assert_settled(job, "succeeded")
    eventually(lambda: len(receiver.received) == 3, seconds=10)
    assert sorted(receiver.events(secret)) == ["job.queued", "job.started", "job.succeeded"]
    events = [received.verify(secret) for received in receiver.received]
    (last,) = [event for event in events if event["type"] == "job.succeeded"]
    assert last["data"]["job"]["id"] == job.id
    assert last["data"]["job"]["labels"] == {"commit": "4a4f8dc"}
    assert len({received.headers["webhook-id"] for received in receiver.received}) == 3
    eventually(lambda: {entry["state"] for entry in deliveries(http, webhook_id)} == {"delivered"}, seconds=5)
