"""Many callers at once while processes come and go."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from catalog.jobs.repository import Jobs
from tests.acceptance.harness import BRIEF, PRUNE
from tests.acceptance.processes import eventually

pytestmark = pytest.mark.faults


def test_one_idempotency_key_twenty_times_at_once(service, inputs):
    """Over two API processes: one job, which every answer names."""
    mark = str(uuid.uuid4())
    body = {"model_id": inputs.model, "pipeline": list(PRUNE), "benchmark": BRIEF, "labels": {"mark": mark}}
    urls = [service.client.base_url, service.start_another_api().url]
    together = threading.Barrier(20)

    def submit(number):
        with httpx.Client(trust_env=False, timeout=150) as http:
            http.get(f"{urls[number % 2]}/livez")
            together.wait()
            return http.post(f"{urls[number % 2]}/v1/jobs", json=body, headers={"idempotency-key": mark})

    with ThreadPoolExecutor(20) as pool:
        answers = list(pool.map(submit, range(20)))
    assert {answer.status_code for answer in answers} == {202}
    (job_id,) = {answer.json()["id"] for answer in answers}
    assert service.jobs_marked(mark) == [job_id]
    row = service.assert_settled(service.client.wait(job_id, timeout=150), "succeeded")
    assert row.attempt == 1


@pytest.mark.timeout(600)
def test_rolling_restart_under_load(fresh):
    """Every process is told to go, one after another, twice, while jobs are submitted and run."""
    mark = str(uuid.uuid4())
    with fresh(drain_seconds=2) as inputs:
        service = inputs.service
        service.start_worker()

        def submit(number):
            return inputs.submit_patiently(key=f"{mark}-{number}", labels={"mark": mark}).id

        with ThreadPoolExecutor(3) as pool:
            futures = [pool.submit(submit, number) for number in range(24)]
            for _ in range(2):
                for worker in [worker for worker in service.workers if worker.alive]:
                    successor = service.start_worker(worker.name.removeprefix("worker-"))
                    eventually(lambda log=successor.log: "serves queue" in log.read_text(), seconds=60)
                    worker.stop(seconds=30)
                    assert worker.popen.returncode == 0
                service.api.stop(seconds=30)
                service.start_api()
            accepted = sorted(future.result() for future in futures)
        assert len(set(accepted)) == 24
        assert service.jobs_marked(mark) == accepted
        for job_id in accepted:
            service.assert_settled(service.client.wait(job_id, timeout=300), "succeeded")
            with service.database.read() as session:
                outcomes = [attempt.outcome for attempt in Jobs(session).attempts(job_id)]
            # Nobody was lost on the way, and what was given back did not count.
            assert set(outcomes[:-1]) <= {"released"}, outcomes
        service.assert_no_attempt_twice()


def test_database_connections_cut(fresh):
    """An administrator, a failover or a restart ends every connection; nobody notices but the log."""
    with fresh() as inputs:
        service = inputs.service
        if not hasattr(service.backend, "cut_connections"):
            pytest.skip("SQLite has no connections that somebody else could cut")
        job = inputs.submit(benchmark=BRIEF | {"max_seconds": 4, "max_rounds": 1_000_000})
        service.wait_for_phase(job.id, "benchmarking")
        for _ in range(5):
            assert service.backend.cut_connections() > 0
            assert service.client.get_job(job.id).state in ("running", "succeeded")
        service.database.dispose()
        row = service.assert_settled(service.client.wait(job.id, timeout=150), "succeeded")
        assert row.attempt == 1
        inputs.assert_healthy()
