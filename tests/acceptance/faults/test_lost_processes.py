"""Processes that die, hang or are told to go: the job ends once, with one result, and the service goes on."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from onnx import helper

from catalog.jobs.repository import Jobs
from catalog.jobs.states import JobState
from tests.acceptance.harness import BRIEF, LONG
from tests.acceptance.processes import eventually, runs, send
from tests.compression.models import make_model, save, value

# Long enough to be interrupted, short enough to be done again.
SOME_SECONDS = BRIEF | {"max_seconds": 3, "max_rounds": 1_000_000}


def attempts(service, job):
    with service.database.read() as session:
        return [(row.outcome, (row.error or {}).get("code")) for row in Jobs(session).attempts(job.id)]


def test_killed_worker(service, inputs):
    """The lease runs out, another worker takes over after the last finished step."""
    steps = [{"type": "prune", "amount": 0.47}, {"type": "quantize", "mode": "float16"}]
    job = inputs.submit(steps, benchmark=SOME_SECONDS)
    service.wait_for_phase(job.id, "benchmarking")
    service.cpu_worker.kill()
    service.start_worker()
    done = service.client.wait(job.id, timeout=150)
    service.assert_settled(done, "succeeded")
    assert attempts(service, job) == [("lost", "worker_lost"), ("succeeded", None)]
    assert [step["cached"] for step in done.steps] == [True, True]
    inputs.assert_healthy()


@pytest.mark.faults
def test_killed_worker_and_child_with_another_at_hand(service, inputs):
    """The next attempt begins within the lease and a sweep."""
    victim = service.cpu_worker
    job = inputs.submit(benchmark=SOME_SECONDS)
    service.wait_for_phase(job.id, "benchmarking")
    child = service.running_child(victim)
    other = service.start_worker()
    eventually(lambda: "serves queue cpu" in other.log.read_text(), what="another worker is ready")
    victim.popen.kill()
    with contextlib.suppress(ProcessLookupError):  # it may have died with its worker already
        send(child.pid, signal.SIGKILL)
    with service.database.read() as session:
        row = Jobs(session).get(job.id)
    assert (row.state, row.attempt) == (JobState.RUNNING, 1), "the job was over too soon"
    service.assert_settled(service.client.wait(job.id, timeout=150), "succeeded")
    with service.database.read() as session:
        first, second = Jobs(session).attempts(job.id)
    assert (first.outcome, second.outcome) == ("lost", "succeeded")
    # A busy machine takes some seconds more to look around.
    assert row.lease_until <= second.started_at < row.lease_until + 1.2 * service.settings.sweep_seconds + 5


@pytest.mark.parametrize(
    ("number", "code"),
    [(signal.SIGKILL, "child_killed"), (signal.SIGSEGV, "child_crashed")],
    ids=["killed", "segfault"],
)
def test_child_dies_once(service, inputs, number, code):
    job = inputs.submit(benchmark=SOME_SECONDS)
    service.wait_for_phase(job.id, "benchmarking")
    send(service.running_child(service.cpu_worker).pid, number)
    service.assert_settled(service.client.wait(job.id, timeout=150), "succeeded")
    assert attempts(service, job) == [("failed", code), ("succeeded", None)]
    inputs.assert_healthy()


def test_child_dies_every_time(service, inputs):
    job = inputs.submit(benchmark=LONG, max_attempts=3)
    for attempt in (1, 2, 3):
        service.wait_for(job.id, lambda row, number=attempt: row.attempt == number and row.state == JobState.RUNNING)
        child = eventually(lambda: service.running_child(service.cpu_worker), what="the child has its job")
        send(child.pid, signal.SIGKILL)
        eventually(lambda dead=child: not runs(dead), seconds=5, what="the child is dead")
    row = service.assert_settled(service.client.wait(job.id, timeout=150), "failed")
    assert (row.error["code"], row.error["attempt"]) == ("child_killed", 3)
    assert attempts(service, job) == [("failed", "child_killed")] * 3
    inputs.assert_healthy()


@pytest.mark.faults
def test_child_over_its_memory_limit(service, inputs, tmp_path):
    """A small file asks for 6 GiB at run time, more than the children of this service get."""
    side = 40_000
    weights = {"column": np.ones((side, 1), np.float32), "row": np.ones((1, side), np.float32)}
    nodes = [
        helper.make_node("ReduceMean", ["x"], ["mean"], "mean_of_input"),
        helper.make_node("Mul", ["mean", "row"], ["scaled"], "mul"),
        helper.make_node("MatMul", ["column", "scaled"], ["wide"], "outer_product"),
        helper.make_node("ReduceMean", ["wide"], ["level"], "mean_of_product"),
        helper.make_node("Add", ["x", "level"], ["y"], "add"),
    ]
    model = make_model(nodes, [value("x", ["n", 4])], [value("y", ["n", 4])], weights)
    created = service.client.create_model(save(model, tmp_path / "greedy.onnx"))
    job = service.client.submit(created.id, [{"type": "prune", "amount": 0.5}], benchmark=BRIEF)
    row = service.assert_settled(service.client.wait(job.id, timeout=150), "failed")
    assert row.error["code"] == "out_of_memory"
    assert row.attempt == 1
    inputs.assert_healthy()


def test_job_expires_at_its_time_limit(service, inputs):
    job = inputs.submit(benchmark=LONG, time_limit_seconds=2)
    started = time.monotonic()
    row = service.assert_settled(service.client.wait(job.id, timeout=120), "expired")
    assert 2 <= time.monotonic() - started < 25
    assert row.attempt == 1
    inputs.assert_healthy()


@pytest.mark.faults
def test_stopped_worker_is_fenced_off(service, inputs):
    """A worker that sleeps past its lease finds its job taken over and leaves it alone."""
    sleeper = service.cpu_worker
    job = inputs.submit(benchmark=SOME_SECONDS)
    service.wait_for_phase(job.id, "benchmarking")
    sleeper.send(signal.SIGSTOP)
    second = service.start_worker()
    service.wait_for(job.id, lambda row: row.attempt == 2 and row.state == JobState.RUNNING)
    sleeper.send(signal.SIGCONT)
    service.assert_settled(service.client.wait(job.id, timeout=150), "succeeded")
    assert attempts(service, job) == [("lost", "worker_lost"), ("succeeded", None)]
    second.stop()
    assert sleeper.alive
    inputs.assert_healthy()


@pytest.mark.faults
def test_worker_that_wakes_up_after_the_end_changes_nothing(service, inputs):
    sleeper = service.cpu_worker
    job = inputs.submit(benchmark=SOME_SECONDS)
    service.wait_for_phase(job.id, "benchmarking")
    sleeper.send(signal.SIGSTOP)
    second = service.start_worker()
    done = service.client.wait(job.id, timeout=150)
    sleeper.send(signal.SIGCONT)
    second.stop()
    inputs.assert_healthy()  # which only the sleeper can do
    service.assert_settled(job.id, "succeeded")
    assert service.client.get_job(job.id).artifacts == done.artifacts


@pytest.mark.faults
def test_worker_told_to_go_gives_its_job_back(service, inputs):
    """A job with a single attempt survives, because a drained attempt does not count."""
    job = inputs.submit(benchmark=SOME_SECONDS, max_attempts=1)
    service.wait_for_phase(job.id, "benchmarking")
    service.cpu_worker.stop()
    service.wait_for(job.id, lambda row: row.state == JobState.QUEUED, seconds=1)
    service.start_worker()
    service.assert_settled(service.client.wait(job.id, timeout=150), "succeeded")
    assert attempts(service, job) == [("released", None), ("succeeded", None)]


def test_worker_told_to_go_finishes_what_is_nearly_done(service, inputs):
    service.cpu_worker.stop()
    worker = service.start_worker(drain_seconds=60)
    job = inputs.submit(benchmark=BRIEF | {"max_seconds": 0.5, "max_rounds": 1_000_000})
    service.wait_for_phase(job.id, "benchmarking")
    worker.stop(seconds=30)
    assert worker.popen.returncode == 0
    service.assert_settled(job, "succeeded")
    assert attempts(service, job) == [("succeeded", None)]


@pytest.mark.faults
def test_api_killed_while_jobs_are_submitted(service, inputs):
    """Every job that was accepted ends, and none of the repeated submissions made a second one."""
    mark = str(uuid.uuid4())
    submitted = threading.Semaphore(0)

    def submit(number):
        job = inputs.submit_patiently(key=f"{mark}-{number}", labels={"mark": mark})
        submitted.release()
        return job.id

    with ThreadPoolExecutor(4) as pool:
        futures = [pool.submit(submit, number) for number in range(8)]
        for _ in range(3):
            submitted.acquire()
        service.api.kill()
        service.start_api()
        accepted = {future.result() for future in futures}
    assert len(accepted) == 8
    assert service.jobs_marked(mark) == sorted(accepted)
    for job_id in accepted:
        service.assert_settled(service.client.wait(job_id, timeout=150), "succeeded")


def test_event_stream_survives_the_api(service, inputs):
    """A client that follows a job sees each event once, though the API dies meanwhile."""
    job = inputs.submit(benchmark=SOME_SECONDS)
    seen = []

    def restart(event):
        seen.append(event.seq)
        if event.data.get("phase") == "benchmarking" and service.api.alive and not restarted:
            restarted.append(True)
            service.api.kill()
            service.start_api()

    restarted: list[bool] = []
    done = service.client.wait(job.id, on_event=restart, timeout=150)
    row = service.assert_settled(done, "succeeded")
    assert restarted
    assert seen == list(range(1, row.last_event + 1))
