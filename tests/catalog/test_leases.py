"""The job protocol's worker side, on SQLite and PostgreSQL."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import update

from catalog.datasets.repository import Datasets
from catalog.db import Database, db_now
from catalog.errors import Fenced
from catalog.jobs.leases import Claim, Leases, NewArtifact
from catalog.jobs.repository import Jobs, NewJob
from catalog.jobs.states import AttemptOutcome, JobKind, JobState, Queue
from catalog.jobs.step_cache import FinishedSteps
from catalog.jobs.tables import JobRow
from catalog.models.repository import Models

ERROR = {"code": "child_crashed", "message": "It crashed.", "retryable": True, "log_tail": ""}
ARTIFACT = NewArtifact("model.onnx", "a" * 64, 10, "application/octet-stream")


def add_job(database: Database, *, queue: Queue = Queue.CPU, **values) -> str:
    new = {"kind": JobKind.COMPRESS, "max_attempts": 2, "time_limit_seconds": 60.0, **values}
    with database.write() as session:
        return Jobs(session).add(NewJob(queue=queue, **new)).id


def claim_job(database: Database, *, owner: str = "worker", lease_seconds: float = 60) -> Claim:
    with database.write() as session:
        claimed = Leases(session).claim(Queue.CPU, owner=owner, lease_seconds=lease_seconds)
    assert claimed is not None
    return claimed[0]


def job(database: Database, job_id: str) -> JobRow:
    with database.read() as session:
        return Jobs(session).get(job_id)


def change(database: Database, job_id: str, **values) -> None:
    with database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(**values))


def run_out(database: Database, claim: Claim) -> set[Queue]:
    """Let the lease run out, and sweep."""
    change(database, claim.job_id, lease_until=db_now() - 1)
    with database.write() as session:
        return Leases(session).sweep()


def event_types(database: Database, job_id: str) -> list[str]:
    with database.read() as session:
        return [event.type for event in Jobs(session).events(job_id)]


def outcomes(database: Database, job_id: str) -> list[str | None]:
    with database.read() as session:
        return [attempt.outcome for attempt in Jobs(session).attempts(job_id)]


def test_an_empty_queue_has_nothing_to_claim(database):
    add_job(database, queue=Queue.IO)
    with database.write() as session:
        assert Leases(session).claim(Queue.CPU, owner="worker", lease_seconds=60) is None


def test_a_claim_starts_an_attempt(database):
    job_id = add_job(database)
    claim = claim_job(database)
    row = job(database, job_id)
    assert claim == Claim(job_id, 1, "worker")
    assert (row.state, row.attempt, row.attempts_left, row.owner) == ("running", 1, 1, "worker")
    assert row.started_at is not None
    assert row.lease_until - row.started_at == pytest.approx(60, abs=2)
    assert event_types(database, job_id) == ["queued", "running"]


def test_higher_priority_is_served_first_then_age(database):
    low, high, also_low = (add_job(database, priority=priority) for priority in (0, 9, 0))
    assert [claim_job(database).job_id for _ in range(3)] == [high, low, also_low]


def test_a_job_is_not_claimed_before_its_time(database):
    job_id = add_job(database)
    claim = claim_job(database)
    with database.write() as session:
        state = Leases(session).fail(claim, ERROR, retry=True, backoff_seconds=60)
    assert state is JobState.QUEUED
    with database.write() as session:
        assert Leases(session).claim(Queue.CPU, owner="worker", lease_seconds=60) is None
        assert Leases(session).waiting(Queue.CPU) == 0
    change(database, job_id, available_at=db_now() - 1)
    with database.read() as session:
        assert Leases(session).waiting(Queue.CPU) == 1
    assert claim_job(database).attempt == 2


def test_many_claimers_never_share_a_job(database):
    jobs = {add_job(database) for _ in range(40)}
    barrier = threading.Barrier(8)

    def claim_all(number: int) -> list[str]:
        barrier.wait()
        mine = []
        while True:
            with database.write() as session:
                claimed = Leases(session).claim(Queue.CPU, owner=f"worker-{number}", lease_seconds=60)
            if claimed is None:
                return mine
            mine.append(claimed[0].job_id)

    with ThreadPoolExecutor(8) as threads:
        claimed = [job_id for mine in threads.map(claim_all, range(8)) for job_id in mine]
    # With rows that others hold skipped, one pass can find a queue empty that is not: whoever holds them goes on.
    assert sorted(claimed) == sorted(jobs)


@pytest.mark.parametrize(
    "write",
    [
        lambda leases, claim: leases.renew(claim, lease_seconds=60),
        lambda leases, claim: leases.cancel_requested(claim),
        lambda leases, claim: leases.progress(claim, phase="pruning", fraction=0.5, message=""),
        lambda leases, claim: leases.note(claim, "step", {}),
        lambda leases, claim: leases.publish(claim, artifacts=[ARTIFACT], result={}),
        lambda leases, claim: leases.publish_inspection(claim, summary={}),
        lambda leases, claim: leases.fail(claim, ERROR, retry=True),
        lambda leases, claim: leases.cancelled(claim),
        lambda leases, claim: leases.expire(claim, ERROR),
        lambda leases, claim: leases.release(claim),
    ],
    ids=[
        "renew",
        "cancel_requested",
        "progress",
        "note",
        "publish",
        "publish_inspection",
        "fail",
        "cancelled",
        "expire",
        "release",
    ],
)
def test_a_worker_that_lost_its_job_cannot_write(database, write):
    job_id = add_job(database)
    old = claim_job(database, owner="sleeper")
    assert run_out(database, old) == {Queue.CPU}
    new = claim_job(database, owner="successor")
    before = event_types(database, job_id)
    with pytest.raises(Fenced), database.write() as session:
        write(Leases(session), old)
    row = job(database, job_id)
    assert (row.state, row.attempt, row.owner) == ("running", 2, "successor")
    assert event_types(database, job_id) == before
    with database.read() as session:
        assert Jobs(session).artifacts(job_id) == []
    with database.write() as session:
        assert Leases(session).publish(new, artifacts=[ARTIFACT], result={"ok": 1}) is JobState.SUCCEEDED


def test_a_finished_job_is_fenced_even_for_its_own_attempt(database):
    add_job(database)
    claim = claim_job(database)
    with database.write() as session:
        Leases(session).publish(claim, artifacts=[ARTIFACT], result={})
    with pytest.raises(Fenced), database.write() as session:
        Leases(session).publish(claim, artifacts=[], result={})


def test_publishing_is_all_or_nothing(database):
    job_id = add_job(database)
    claim = claim_job(database)
    with database.write() as session:
        Leases(session).publish(claim, artifacts=[ARTIFACT], result={"seconds": 1.5})
    row = job(database, job_id)
    assert (row.state, row.progress, row.result, row.error, row.owner) == (
        "succeeded",
        1.0,
        {"seconds": 1.5},
        None,
        None,
    )
    with database.read() as session:
        (artifact,) = Jobs(session).artifacts(job_id)
    assert (artifact.name, artifact.sha256, artifact.size, artifact.attempt) == ("model.onnx", "a" * 64, 10, 1)
    assert outcomes(database, job_id) == [AttemptOutcome.SUCCEEDED]


def test_a_cancel_request_wins_over_publishing(database):
    job_id = add_job(database)
    claim = claim_job(database)
    with database.write() as session:
        Jobs(session).request_cancel(job_id)
    with database.read() as session:
        assert Leases(session).cancel_requested(claim)
    with database.write() as session:
        assert Leases(session).publish(claim, artifacts=[ARTIFACT], result={}) is JobState.CANCELLED
    assert job(database, job_id).state == "cancelled"
    with database.read() as session:
        assert Jobs(session).artifacts(job_id) == []
    assert event_types(database, job_id) == ["queued", "running", "cancel_requested", "cancelled"]


@pytest.mark.parametrize("end", ["fail", "release", "sweep"])
def test_a_cancel_request_wins_over_another_attempt(database, end):
    job_id = add_job(database)
    claim = claim_job(database)
    with database.write() as session:
        Jobs(session).request_cancel(job_id)
    if end == "sweep":
        assert run_out(database, claim) == set()
    else:
        with database.write() as session:
            leases = Leases(session)
            leases.fail(claim, ERROR, retry=True) if end == "fail" else leases.release(claim)
    assert job(database, job_id).state == "cancelled"


def test_a_job_fails_after_its_last_attempt(database):
    job_id = add_job(database, max_attempts=2)
    for expected in (JobState.QUEUED, JobState.FAILED):
        claim = claim_job(database)
        with database.write() as session:
            assert Leases(session).fail(claim, ERROR, retry=True) is expected
    row = job(database, job_id)
    assert row.error == {**ERROR, "attempt": 2}
    assert outcomes(database, job_id) == [AttemptOutcome.FAILED, AttemptOutcome.FAILED]


def test_an_error_that_another_attempt_cannot_cure_ends_the_job(database):
    job_id = add_job(database, max_attempts=5)
    claim = claim_job(database)
    with database.write() as session:
        assert Leases(session).fail(claim, ERROR, retry=False) is JobState.FAILED
    assert job(database, job_id).attempts_left == 4


def test_giving_a_job_back_costs_no_attempt(database):
    job_id = add_job(database, max_attempts=1)
    for number in (1, 2, 3):
        claim = claim_job(database)
        assert claim.attempt == number
        with database.write() as session:
            Leases(session).release(claim)
    row = job(database, job_id)
    assert (row.state, row.attempts_left, row.phase, row.progress) == ("queued", 1, "", 0.0)
    assert outcomes(database, job_id) == [AttemptOutcome.RELEASED] * 3


def test_a_lost_worker_costs_an_attempt(database):
    job_id = add_job(database, max_attempts=2)
    assert run_out(database, claim_job(database)) == {Queue.CPU}
    assert job(database, job_id).state == "queued"
    assert run_out(database, claim_job(database)) == set()
    row = job(database, job_id)
    assert (row.state, row.error["code"], row.error["attempt"]) == ("failed", "worker_lost", 2)
    assert outcomes(database, job_id) == [AttemptOutcome.LOST] * 2


def test_a_renewed_lease_does_not_run_out(database):
    job_id = add_job(database)
    claim = claim_job(database, lease_seconds=-1)
    with database.write() as session:
        Leases(session).renew(claim, lease_seconds=60)
    with database.write() as session:
        assert Leases(session).sweep() == set()
    assert job(database, job_id).state == "running"


def test_a_job_that_nobody_started_in_time_expires(database):
    job_id = add_job(database, start_within_seconds=-1)
    with database.write() as session:
        # Late is late, even before a sweep has noticed.
        assert Leases(session).claim(Queue.CPU, owner="worker", lease_seconds=60) is None
        Leases(session).sweep()
    row = job(database, job_id)
    assert (row.state, row.error["code"]) == ("expired", "not_started_in_time")
    assert row.finished_at is not None


def test_a_job_that_came_back_to_the_queue_has_met_its_deadline_for_starting(database):
    job_id = add_job(database, start_within_seconds=60)
    claim = claim_job(database)
    change(database, job_id, expires_at=db_now() - 1)
    assert run_out(database, claim) == {Queue.CPU}
    with database.write() as session:
        Leases(session).sweep()
    assert job(database, job_id).state == "queued"
    assert claim_job(database).attempt == 2


def test_the_time_limit_ends_a_job(database):
    job_id = add_job(database)
    claim = claim_job(database)
    with database.write() as session:
        Leases(session).expire(claim, {**ERROR, "code": "time_limit_exceeded"})
    row = job(database, job_id)
    assert (row.state, row.error["code"], row.error["attempt"]) == ("expired", "time_limit_exceeded", 1)
    assert outcomes(database, job_id) == [AttemptOutcome.EXPIRED]


def test_an_inspection_makes_its_model_ready(database):
    with database.write() as session:
        model_id = Models(session).add(name="m", files=[{"name": "m.onnx", "sha256": "0" * 64, "size": 1}]).id
    add_job(database, kind=JobKind.INSPECT_MODEL, model_id=model_id)
    with database.write() as session:
        claimed = Leases(session).claim(Queue.CPU, owner="worker", lease_seconds=60)
        Leases(session).publish_inspection(claimed[0], summary={"nodes": 3})
    with database.read() as session:
        model = Models(session).get(model_id)
    assert (model.state, model.summary, model.error) == ("ready", {"nodes": 3}, None)


def test_a_failed_inspection_rejects_its_dataset(database):
    with database.write() as session:
        dataset_id = Datasets(session).add(name="d", sha256="0" * 64, size=1, images=None).id
        other_id = Datasets(session).add(name="e", sha256="1" * 64, size=1, images=None).id
    add_job(database, kind=JobKind.INSPECT_DATASET, datasets={"subject": dataset_id})
    claim = claim_job(database)
    with database.write() as session:
        Leases(session).fail(claim, {**ERROR, "code": "not_a_dataset"}, retry=False)
    with database.read() as session:
        dataset, other = Datasets(session).get(dataset_id), Datasets(session).get(other_id)
    assert (dataset.state, dataset.error) == ("rejected", {"code": "not_a_dataset", "message": "It crashed."})
    assert other.state == "inspecting"


def test_events_are_numbered_without_gaps_when_many_write(database):
    job_id = add_job(database)
    claim = claim_job(database)

    def report(number: int) -> None:
        with database.write() as session:
            Leases(session).progress(claim, phase="pruning", fraction=number / 20, message=f"{number}")

    with ThreadPoolExecutor(4) as threads:
        list(threads.map(report, range(20)))
    with database.read() as session:
        assert [event.seq for event in Jobs(session).events(job_id)] == list(range(1, 23))


def test_the_longest_known_prefix_of_steps_is_found(database):
    keys = [f"{number}" * 64 for number in range(4)]
    with database.write() as session:
        steps = FinishedSteps(session, "default")
        for key in (keys[0], keys[2]):
            steps.put(key, [{"name": "model.onnx", "sha256": key, "size": 1}])
            steps.put(key, [{"name": "model.onnx", "sha256": key, "size": 2}])
    with database.write() as session:
        steps = FinishedSteps(session, "default")
        assert steps.longest_prefix(keys).key == keys[2]
        assert steps.longest_prefix(keys[:2]).key == keys[0]
        assert steps.longest_prefix(keys[3:]) is None
        assert steps.longest_prefix([]) is None
        assert steps.longest_prefix(keys).files == [{"name": "model.onnx", "sha256": keys[2], "size": 2}]


def test_a_claim_that_was_not_committed_did_not_happen(database):
    job_id = add_job(database)

    def die() -> None:
        with database.write() as session:
            Leases(session).claim(Queue.CPU, owner="worker", lease_seconds=60)
            raise RuntimeError("the worker died before its commit")

    with pytest.raises(RuntimeError):
        die()
    assert job(database, job_id).state == "queued"
    assert claim_job(database).attempt == 1
