"""Messages that get lost, come several times or come late, and brokers that die: jobs do none of it."""

from __future__ import annotations

import fcntl
import socket
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import httpx
import pytest

from catalog.jobs.repository import Jobs, NewJob
from catalog.jobs.states import JobKind, Queue
from tests.acceptance.backends import Embedded
from tests.acceptance.conftest import DIGITS
from tests.acceptance.harness import BRIEF, PRUNE
from tests.acceptance.processes import eventually

pytestmark = pytest.mark.faults


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
    row = service.assert_settled(service.client.wait(job_id, timeout=120), "succeeded")
    assert row.attempt == 1


def test_three_messages_at_once_for_one_job(service, inputs):
    second = service.start_worker()
    (job_id,) = add_without_waking(service, inputs.model)
    with ThreadPoolExecutor(3) as pool:
        list(pool.map(service.wake, ["cpu"] * 3))
    row = service.assert_settled(service.client.wait(job_id, timeout=120), "succeeded")
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


def test_one_message_three_times(service, inputs):
    service.stop_workers()
    job = inputs.submit()
    assert service.backend.repeat_messages(2) == 2
    service.ensure()
    second = service.start_worker()
    row = service.assert_settled(service.client.wait(job.id, timeout=150), "succeeded")
    assert row.attempt == 1
    inputs.assert_healthy()
    second.stop()


def test_a_job_longer_than_the_visibility_timeout(service, inputs):
    """Redis hands a message out again that was not acknowledged in time; ours are before the work begins."""
    service.stop_workers()
    workers = [service.start_worker(module="tests.acceptance.faults.impatient_worker") for _ in range(2)]
    job = inputs.submit(benchmark=BRIEF | {"max_seconds": 6, "max_rounds": 1_000_000})
    row = service.assert_settled(service.client.wait(job.id, timeout=120), "succeeded")
    assert row.finished_at - row.started_at > 6
    assert row.attempt == 1
    for worker in workers:
        worker.stop()


@pytest.mark.timeout(600)
def test_redis_killed_wiped_and_restarted(fresh):
    """Fifty jobs wait or run when all messages are lost, and one is submitted while nobody answers."""
    with fresh(own_redis=True) as inputs:
        service, backend = inputs.service, inputs.service.backend
        upload = service.client.upload(DIGITS / "calibration.npz")
        jobs = [inputs.submit().id for _ in range(6)]
        datasets = [service.client.create_dataset(upload, wait=0) for _ in range(44)]
        if isinstance(backend, Embedded):
            backend.wipe_broker()
        else:
            backend.own_redis.kill()
            backend.own_redis.wipe()
        jobs.append(inputs.submit().id)
        if not isinstance(backend, Embedded):
            time.sleep(1)
            backend.own_redis.start()
        for job_id in jobs:
            row = service.assert_settled(service.client.wait(job_id, timeout=300), "succeeded")
            assert row.attempt == 1
        for dataset in datasets:
            eventually(lambda found=dataset: service.client.get_dataset(found.id).state == "ready", seconds=120)
        inputs.assert_healthy()


def test_api_killed_between_its_commit_and_its_message(service, inputs):
    """The job waits in the database, nobody was told, and the caller has no answer: asking again finds that job."""
    mark = str(uuid.uuid4())
    body = {"model_id": inputs.model, "pipeline": list(PRUNE), "benchmark": BRIEF, "labels": {"mark": mark}}
    headers = {"idempotency-key": mark}
    outcome = []

    def submit(url):
        try:
            outcome.append(httpx.post(f"{url}/v1/jobs", json=body, headers=headers, timeout=60, trust_env=False))
        except httpx.TransportError as error:
            outcome.append(error)

    with api_that_cannot_send(service) as api:
        caller = threading.Thread(target=submit, args=(api.url,))
        caller.start()
        (job_id,) = eventually(lambda: service.jobs_marked(mark))
        api.kill()
        caller.join()
    assert isinstance(outcome[0], httpx.TransportError)
    again = httpx.post(f"{service.client.base_url}/v1/jobs", json=body, headers=headers, trust_env=False)
    assert (again.status_code, again.json()["id"]) == (202, job_id)
    row = service.assert_settled(service.client.wait(job_id, timeout=150), "succeeded")
    assert row.attempt == 1
    assert service.jobs_marked(mark) == [job_id]


@contextmanager
def api_that_cannot_send(service):
    """An API process whose sending of messages never ends."""
    if isinstance(service.backend, Embedded):
        api = service.start_another_api()
        service.wake("cpu")
        with (service.data_dir / "broker" / "control" / "cpu.exchange").open() as table:
            # Whoever sends looks into this table first.
            fcntl.flock(table, fcntl.LOCK_EX)
            yield api
    else:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            url = f"redis://127.0.0.1:{silent.getsockname()[1]}/0"
            yield service.start_another_api(broker_url=url)
