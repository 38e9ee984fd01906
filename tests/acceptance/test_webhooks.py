"""Events on their way through real processes to a real receiver."""

from __future__ import annotations

import pytest

from catalog.webhooks.signatures import new_secret
from tests.acceptance.conftest import DIGITS
from tests.acceptance.harness import BRIEF, PRUNE
from tests.acceptance.processes import eventually
from tests.receiver import Answer, Receiver


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


def test_a_receiver_that_fails_first(service, http, receiver, register):
    receiver.answer_with(Answer(500), Answer(307, headers={"location": "http://169.254.169.254/"}), Answer(200))
    webhook_id, secret = register(receiver.url)
    http.post(f"/v1/webhooks/{webhook_id}/test").raise_for_status()
    eventually(lambda: deliveries(http, webhook_id)[0]["state"] == "failed", seconds=10)
    (delivery,) = deliveries(http, webhook_id)
    http.post(f"/v1/webhooks/{webhook_id}/deliveries/{delivery['id']}/replay").raise_for_status()
    eventually(lambda: len(receiver.received) == 2, seconds=10)
    http.post(f"/v1/webhooks/{webhook_id}/rotate").raise_for_status()
    eventually(lambda: deliveries(http, webhook_id)[0]["state"] == "failed", seconds=10)
    http.post(f"/v1/webhooks/{webhook_id}/deliveries/{delivery['id']}/replay").raise_for_status()
    eventually(lambda: deliveries(http, webhook_id)[0]["state"] == "delivered", seconds=10)
    attempts = deliveries(http, webhook_id)[0]["attempts"]
    assert [(one["status"], (one["error"] or {}).get("code")) for one in attempts] == [
        (500, "bad_status"),
        (307, "redirected"),
        (200, None),
    ]
    # The secret of before the rotation still verifies.
    assert receiver.events(secret) == ["webhook.ping"] * 3


def test_a_worker_killed_while_it_sends(service, inputs, http, receiver, register):
    """The attempt is lost with its worker; once the lease has run out, another worker makes the next one."""
    receiver.answer_with(Answer(hang=True), Answer(204))
    webhook_id, secret = register(receiver.url, events=["job.queued"])
    job = inputs.submit()
    eventually(lambda: receiver.received, seconds=10)
    (sender,) = [worker for worker in service.workers if worker.name == "worker-io" and worker.alive]
    sender.kill()
    service.ensure()
    eventually(lambda: deliveries(http, webhook_id)[0]["state"] == "delivered", seconds=60)
    (delivery,) = deliveries(http, webhook_id)
    assert [(one["error"] or {}).get("code") for one in delivery["attempts"]] == ["worker_lost", None]
    assert {received.headers["webhook-id"] for received in receiver.received} == {delivery["id"]}
    assert receiver.events(secret) == ["job.queued"] * 2
    service.assert_settled(service.client.wait(job.id, timeout=60), "succeeded")


def test_receivers_that_hang_keep_no_job_waiting(service, inputs, http):
    with Receiver(Answer(hang=True)) as slow:
        for _ in range(8):
            webhook = {"url": slow.url, "secret": new_secret(), "events": ["job.queued"]}
            body = {"model_id": inputs.model, "pipeline": list(PRUNE), "benchmark": BRIEF, "webhook": webhook}
            job = http.post("/v1/jobs", json=body | {"start_within_seconds": 0.01}).raise_for_status().json()
        own = http.get("/v1/webhooks", params={"job_id": job["id"]}).json()["items"]
        eventually(lambda: len(slow.received) >= 2, seconds=60)
        assert service.client.create_dataset(DIGITS / "calibration.npz", wait=30).state == "ready"
        job = service.client.wait(inputs.submit().id, timeout=120)
        service.assert_settled(job, "succeeded")
        states = {entry["state"] for entry in deliveries(http, own[0]["id"])}
        assert states <= {"waiting", "sending"}
        slow.release()
