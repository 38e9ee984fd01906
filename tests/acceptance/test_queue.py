"""Messages that get lost, come twice or come late: jobs do neither."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

from catalog.jobs.repository import Jobs, NewJob
from catalog.jobs.states import JobKind, JobState, Queue
from tests.acceptance.conftest import DIGITS
from tests.acceptance.harness import BRIEF, LONG, PRUNE
from tests.acceptance.processes import eventually


def add_without_waking(service, model_id, count=1):
    """What an API that dies between its commit and its message leaves: jobs that nobody was told of."""
    with service.database.write() as session:
        return [
            Jobs(session)
            .add(
                NewJob(
                    kind=JobKind.COMPRESS,
                    queue=Queue.CPU,
                    max_attempts=3,
                    time_limit_seconds=60,
                    model_id=model_id,
                    spec={"steps": list(PRUNE), "benchmark": BRIEF, "seed": 0},
                )
            )
            .id
            for _ in range(count)
        ]


def test_job_that_nobody_was_told_of(service, inputs):
    (job_id,) = add_without_waking(service, inputs.model)
    row = service.assert_settled(service.client.wait(job_id, timeout=30), "succeeded")
    assert row.attempt == 1


def test_three_messages_at_once_for_one_job(service, inputs):
    second = service.start_worker()
    (job_id,) = add_without_waking(service, inputs.model)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(service.wake, ["cpu"] * 3))
    row = service.assert_settled(service.client.wait(job_id, timeout=30), "succeeded")
    assert row.attempt == 1
    inputs.assert_healthy()
    second.stop()


def test_wiped_broker(service, inputs):
    """Fifty jobs wait, five compressions and forty-five inspections, and all messages vanish."""
    service.stop_workers()
    jobs = [inputs.submit().id for _ in range(5)]
    upload = service.client.upload(DIGITS / "calibration.npz")
    datasets = [service.client.create_dataset(upload, wait=0) for _ in range(45)]
    assert service.backend.wipe_broker() > 0
    service.ensure()
    for job_id in jobs:
        row = service.assert_settled(service.client.wait(job_id, timeout=120), "succeeded")
        assert row.attempt == 1
    for dataset in datasets:
        eventually(lambda found=dataset: service.client.get_dataset(found.id).state == "ready", seconds=60)


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
