"""What Prometheus is told, and what asking costs."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from prometheus_client.parser import text_string_to_metric_families
from sqlalchemy import event, insert, text

from catalog.jobs.effort import Effort
from catalog.jobs.leases import Leases, NewArtifact
from catalog.jobs.repository import Jobs
from catalog.jobs.states import JobState, Queue
from catalog.jobs.tables import JobRow
from catalog.totals.metrics import COUNTERS, HISTOGRAMS
from catalog.workers.repository import Workers
from catalog.workers.tables import WorkerRow
from tests.api.harness import ERROR


def numbers(exposed):
    """Each number under its name and the values of its labels, in the order of the labels' names."""
    return {
        (sample.name, *(value for _, value in sorted(sample.labels.items()))): sample.value
        for family in text_string_to_metric_families(exposed)
        for sample in family.samples
    }


@pytest.fixture
def metrics(service):
    return lambda: numbers(service.http.get("/metrics").text)


@pytest.fixture
def grown(metrics):
    """How much a number has grown since the test began."""
    before = metrics()
    return lambda *key: metrics().get(key, 0) - before.get(key, 0)


def test_each_metric_is_exposed_once_with_its_help(service):
    families = list(text_string_to_metric_families(service.http.get("/metrics").text))
    names = [family.name for family in families]
    assert len(names) == len(set(names))
    assert all(family.documentation for family in families)
    for metric in (*COUNTERS, *HISTOGRAMS):
        assert metric.name.removesuffix("_total") in names


def test_an_attempt_that_succeeds(service, grown):
    job_id = service.job()
    claim = service.claim(job_id)
    effort = Effort(waited_seconds=2.0)
    effort.input_bytes = 3000
    effort.enter("pruning")
    effort.enter("a name that no phase has")
    effort.note_step("prune", 1e9)
    artifacts = [NewArtifact(f"{i}.onnx", "0" * 64, 100, "application/octet-stream") for i in range(2)]
    with service.database.write() as session:
        Leases(session, effort).publish(claim, artifacts=artifacts, result={})
    assert grown("levity_attempts_total", "", "compress", "succeeded", "cpu") == 1
    assert grown("levity_jobs_ended_total", "compress", "cpu", "succeeded") == 1
    assert grown("levity_artifact_bytes_total", "cpu") == 200
    assert grown("levity_input_bytes_total", "cpu") == 3000
    assert grown("levity_job_wait_seconds_count", "compress", "cpu") == 1
    assert grown("levity_job_wait_seconds_sum", "compress", "cpu") == 2
    assert grown("levity_job_wait_seconds_bucket", "compress", "1.0", "cpu") == 0
    assert grown("levity_job_wait_seconds_bucket", "compress", "3.0", "cpu") == 1
    for phase in ("preparing", "pruning", "other"):
        assert grown("levity_phase_seconds_count", "compress", phase) == 1
    # The attempt took less than a second, whatever its process says of the step.
    assert grown("levity_step_seconds_bucket", "30.0", "prune") == 1
    assert grown("levity_attempt_seconds_count", "compress", "succeeded", "cpu") == 1


def test_attempts_that_fail_and_are_lost(service, grown):
    job_id = service.job()
    claim = service.claim(job_id)
    service.leases(lambda leases: leases.fail(claim, ERROR, retry=True))
    assert grown("levity_attempts_total", "child_crashed", "compress", "failed", "cpu") == 1
    assert grown("levity_jobs_ended_total", "compress", "cpu", "failed") == 0
    service.claim(job_id)
    service.change(JobRow, job_id, lease_until=0.0)
    assert grown("levity_leases_overdue") == 1
    service.leases(lambda leases: leases.sweep())
    assert grown("levity_leases_overdue") == 0
    assert grown("levity_attempts_total", "worker_lost", "compress", "lost", "cpu") == 1
    claim = service.claim(job_id)
    service.leases(lambda leases: leases.release(claim))
    assert grown("levity_attempts_total", "", "compress", "released", "cpu") == 1
    service.http.post(f"/v1/jobs/{job_id}/cancel").raise_for_status()
    assert grown("levity_jobs_ended_total", "compress", "cpu", "cancelled") == 1


def test_bytes_in_and_out(service, grown):
    upload = service.upload(b"x" * 5000)
    assert grown("levity_http_received_bytes_total", "/v1/uploads/{upload_id}/content") == 5000
    job_id = service.job()
    service.publish(job_id, {}, {"model.onnx": (b"y" * 7000, "application/octet-stream")})
    service.http.get(f"/v1/jobs/{job_id}/artifacts/model.onnx").raise_for_status()
    assert grown("levity_http_sent_bytes_total", "/v1/jobs/{job_id}/artifacts/{name}") == 7000
    assert service.http.get(f"/v1/uploads/{upload}").is_success


def test_workers_that_live_and_that_fell_silent(service, metrics):
    with service.database.write() as session:
        for number in range(2):
            Workers(session).register(f"wrk_{number}", host="h", queue=Queue.IO, concurrency=4, capabilities={})
    service.change(WorkerRow, "wrk_1", seen_at=0.0)
    found = metrics()
    assert (found["levity_workers", "io"], found["levity_worker_slots", "io"]) == (1, 4)
    assert 0 <= found["levity_worker_seen_seconds", "io", "wrk_0"] < 60
    assert found["levity_worker_seen_seconds", "io", "wrk_1"] > 10**9
    with service.database.write() as session:
        Workers(session).forget_silent(seconds=-10)


def rows(number, state, first):
    return [
        {
            "id": f"job_{first + index:032x}",
            "kind": "compress",
            "labels": {},
            "spec": {},
            "queue": "cpu",
            "state": state,
            "attempts_left": 3,
            "max_attempts": 3,
            "available_at": 1.0,
            "time_limit_seconds": 60.0,
            "created_at": 1.0,
        }
        for index in range(number)
    ]


def test_ten_thousand_jobs_are_counted_from_an_index(service, metrics):
    with service.database.write() as session:
        session.execute(insert(JobRow), rows(10_000, JobState.QUEUED, 0))
        session.execute(insert(JobRow), rows(40_000, JobState.SUCCEEDED, 10_000))
    try:
        with service.database._engine.connect() as connection:
            connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE"))
        asked = []
        engine = service.database._engine

        def note(_connection, _cursor, statement, parameters, *_rest):
            asked.append((statement, parameters))

        event.listen(engine, "before_cursor_execute", note)
        with service.database.read() as session:
            groups = Jobs(session).unfinished()
            event.remove(engine, "before_cursor_execute", note)
            (statement, parameters) = next(call for call in asked if "count(" in call[0])
            explain = "EXPLAIN QUERY PLAN " if engine.dialect.name == "sqlite" else "EXPLAIN "
            plan = str(session.connection().exec_driver_sql(explain + statement, parameters).all())
        (group,) = [group for group in groups if group.state is JobState.QUEUED]
        assert group.number == 10_000
        assert group.oldest_seconds > 10**9
        # PostgreSQL needs the table itself until it was vacuumed, and then takes whatever index finds the rows.
        expected = "COVERING INDEX ix_jobs_unfinished" if engine.dialect.name == "sqlite" else "Index Scan on ix_jobs_"
        assert expected in plan, plan
        assert "Seq Scan" not in plan, plan
        assert metrics()["levity_queue_depth", "cpu"] == 10_000
    finally:
        with service.database.write() as session:
            session.execute(text("DELETE FROM jobs WHERE available_at = 1.0"))


def test_processes_share_their_counters(tmp_path):
    """With `--api-processes 2` it does not matter which of them is asked."""
    script = f"""
import os, sys
from catalog.settings import Settings
from api.metrics import Metrics
from catalog.blobs import Blobs
from catalog.db import Database
settings = Settings(data_dir={str(tmp_path)!r})
database = Database(settings.resolved_database_url)
database.migrate()
metrics = Metrics(database, Blobs.from_settings(settings), worker_silence_seconds=60)
metrics.requests.labels("GET", "/x", "200").inc(int(sys.argv[1]))
metrics.latency.labels("GET", "/x").observe(0.003)
sys.stdout.write(metrics.text().decode())
"""
    (tmp_path / "shared").mkdir()
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "shared")}
    for number in ("2", "3"):
        done = subprocess.run(
            [sys.executable, "-c", script, number],
            env=environment,
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        )
    found = numbers(done.stdout)
    assert found["levity_http_requests_total", "GET", "/x", "200"] == 5
    assert found["levity_http_request_seconds_bucket", "0.005", "GET", "/x"] == 2
    assert found["levity_queue_depth", "cpu"] == 0
