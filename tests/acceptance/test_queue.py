"""Who is served first."""

from __future__ import annotations

from catalog.jobs.states import JobState
from tests.acceptance.conftest import DIGITS
from tests.acceptance.harness import LONG


def test_urgent_job_goes_first(service, inputs):
    blocker = inputs.submit(benchmark=LONG)
    service.wait_for(blocker.id, lambda row: row.state == JobState.RUNNING)
    usual, urgent = inputs.submit(), inputs.submit(priority=9)
    service.client.cancel(blocker.id)
    rows = [service.assert_settled(service.client.wait(job.id, timeout=30), "succeeded") for job in (usual, urgent)]
    assert rows[1].started_at < rows[0].started_at
    service.assert_settled(blocker.id, "cancelled")


def test_inspection_does_not_wait_behind_a_job(service, inputs):
    blocker = inputs.submit(benchmark=LONG)
    service.wait_for(blocker.id, lambda row: row.state == JobState.RUNNING)
    assert service.client.create_dataset(DIGITS / "calibration.npz", wait=10).state == "ready"
    service.client.cancel(blocker.id)
    service.assert_settled(service.client.wait(blocker.id, timeout=30), "cancelled")
