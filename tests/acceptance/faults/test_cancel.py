"""Cancelling in every state."""

from __future__ import annotations

import random
import signal
import threading
import time

import pytest

from catalog.jobs.states import JobState
from tests.acceptance.harness import LONG
from tests.acceptance.processes import eventually, runs

pytestmark = pytest.mark.faults


def test_queued(service, inputs):
    blocker = inputs.submit(benchmark=LONG)
    service.wait_for(blocker.id, lambda row: row.state == JobState.RUNNING)
    job = service.client.cancel(inputs.submit().id)
    assert job.state == "cancelled"
    row = service.assert_settled(job, "cancelled")
    assert row.attempt == 0
    service.client.cancel(blocker.id)
    service.assert_settled(service.client.wait(blocker.id, timeout=120), "cancelled")
    inputs.assert_healthy()


def test_loading(service, inputs):
    """Before the child has said anything; retried, because on a fast machine that moment is short."""
    for _ in range(10):
        job = inputs.submit(benchmark=LONG)
        service.wait_for(job.id, lambda row: row.state == JobState.RUNNING)
        service.client.cancel(job.id)
        row = service.assert_settled(service.client.wait(job.id, timeout=120), "cancelled")
        if row.phase == "loading":
            break
    else:
        raise AssertionError("no job was still loading when it was cancelled")
    inputs.assert_healthy()


def test_running(service, inputs):
    job = inputs.submit(benchmark=LONG)
    service.wait_for_phase(job.id, "benchmarking")
    child = service.running_child(service.cpu_worker)
    asked = time.monotonic()
    assert service.client.cancel(job.id).raw["cancel_requested"] is True
    service.assert_settled(service.client.wait(job.id, timeout=120), "cancelled")
    assert time.monotonic() - asked < 15
    eventually(lambda: not runs(child), seconds=15)
    inputs.assert_healthy()


def test_cancelled_job_can_be_retried(service, inputs):
    job = inputs.submit(benchmark=LONG)
    service.wait_for_phase(job.id, "benchmarking")
    service.client.cancel(job.id)
    service.wait_for(job.id, lambda row: row.state == JobState.CANCELLED)
    assert service.client.retry(job.id).state in ("queued", "running")
    service.wait_for_phase(job.id, "benchmarking", attempt=2)
    service.client.cancel(job.id)
    assert service.client.wait(job.id, timeout=120).state == "cancelled"


def test_racing_with_the_end(service, inputs):
    """Whoever comes first wins, whole: cancelled without artifacts, or succeeded with all of them."""
    randomness = random.Random(7)
    ends = {"cancelled": 0, "succeeded": 0}
    for _ in range(10):
        job = inputs.submit()
        service.wait_for(job.id, lambda row: row.phase in ("benchmarking", "reporting", "publishing"))
        time.sleep(randomness.uniform(0, 0.4))
        answer = service.client.cancel(job.id)
        done = service.client.wait(job.id, timeout=120)
        service.assert_settled(done, done.state)
        if answer.state == "succeeded":
            assert done.state == "succeeded"
        ends[done.state] += 1
    assert sum(ends.values()) == 10
    inputs.assert_healthy()


STEPS = [{"type": "cluster", "clusters": 16}, {"type": "quantize", "mode": "dynamic"}, {"type": "encode"}]
PHASES = [
    "loading",
    "pruning",
    "clustering",
    "quantizing",
    "encoding",
    "verifying",
    "benchmarking",
    "reporting",
    "publishing",
]


@pytest.mark.timeout(600)
def test_in_every_phase(service, inputs):
    """The worker is stopped for the moment of the request, so that no phase is too short to be hit."""
    worker = service.cpu_worker
    reached = dict.fromkeys(PHASES, 0)
    for number in range(60):
        missing = [phase for phase in PHASES if not reached[phase]]
        if not missing:
            break
        # Of every job another model, or its first steps would be done already.
        job = inputs.submit([{"type": "prune", "amount": 0.3 + number / 1000}, *STEPS])
        service.wait_for(
            job.id, lambda row, phase=missing[0]: row.phase == phase or JobState(row.state).terminal, pause=0
        )
        worker.send(signal.SIGSTOP)
        # It may hold a lock that the request waits for.
        request = threading.Thread(target=service.client.cancel, args=(job.id,))
        request.start()
        request.join(0.5)
        # The worker stands still: the row shows where the request met the job, unless it waits for the worker's lock.
        met = None if request.is_alive() else service.wait_for(job.id, lambda _row: True).phase
        worker.send(signal.SIGCONT)
        request.join()
        done = service.client.wait(job.id, timeout=150)
        service.assert_settled(done, done.state)
        if done.state == "cancelled":
            if met is not None:
                reached[met] += 1
        else:
            assert done.state == "succeeded"
    assert missing == [], reached
    inputs.assert_healthy()
