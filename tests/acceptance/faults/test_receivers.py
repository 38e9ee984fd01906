"""Receivers of webhooks that are slow, gone, or not where they were: events still arrive, and nowhere else."""

from __future__ import annotations

import pytest

from tests.acceptance.processes import eventually
from tests.receiver import Answer

pytestmark = pytest.mark.faults


def attempts(http, webhook_id):
    entries = http.get(f"/v1/webhooks/{webhook_id}/deliveries").raise_for_status().json()["items"]
    return [(entry["state"], [(one["error"] or {}).get("code") for one in entry["attempts"]]) for entry in entries]


def make_attempts(http, webhook_id, expected):
    """Ping the webhook, and repeat until there is one attempt for each expected outcome."""
    http.post(f"/v1/webhooks/{webhook_id}/test").raise_for_status()
    for number in range(1, len(expected) + 1):
        codes = expected[:number]
        state = "failed" if codes[-1] else "delivered"
        eventually(lambda want=[(state, codes)]: attempts(http, webhook_id) == want, seconds=30, what=f"{codes}")
        if number < len(expected):
            (delivery,) = http.get(f"/v1/webhooks/{webhook_id}/deliveries").json()["items"]
            http.post(f"/v1/webhooks/{webhook_id}/deliveries/{delivery['id']}/replay").raise_for_status()


def test_a_receiver_that_hangs_drips_and_comes_back(service, http, receiver):
    """An attempt has three seconds, however its answer trickles in."""
    receiver.answer_with(Answer(hang=True), Answer(drip=True), Answer(204))
    created = http.post("/v1/webhooks", json={"url": receiver.url}).raise_for_status().json()
    webhook_id = created["webhook"]["id"]
    make_attempts(http, webhook_id, ["timeout", "timeout", None])
    assert receiver.events(created["secret"]) == ["webhook.ping"] * 3
    http.delete(f"/v1/webhooks/{webhook_id}").raise_for_status()


def test_a_name_that_changes_its_mind(service, http, receiver):
    """What was judged is what is connected to, in every attempt anew; one bad address spoils all."""
    (usual,) = [worker for worker in service.workers if worker.name == "worker-io" and worker.alive]
    usual.stop()
    service.start_worker("io", module="tests.acceptance.faults.rebinding_worker")
    url = f"http://rebind.test:{receiver.port}/hooks"
    webhook_id = http.post("/v1/webhooks", json={"url": url}).raise_for_status().json()["webhook"]["id"]
    make_attempts(http, webhook_id, [None, "address_refused", "address_refused", "address_refused"])
    assert receiver.connections == 1
    http.delete(f"/v1/webhooks/{webhook_id}").raise_for_status()
    for worker in service.workers:
        if worker.name == "worker-io" and worker.alive:
            worker.stop()
