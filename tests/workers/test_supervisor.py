"""Jobs from start to end, with real children."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import threading
import time
from pathlib import Path

import pytest
from sqlalchemy import delete, update
from sqlalchemy.exc import OperationalError

from catalog.blobs import Blobs
from catalog.db import db_now
from catalog.errors import StoreUnavailable
from catalog.jobs.leases import Leases
from catalog.jobs.repository import Jobs
from catalog.jobs.states import JobKind, Queue
from catalog.jobs.tables import JobRow, StepCacheRow
from catalog.models.repository import Models
from catalog.models.tables import ModelRow
from catalog.storage.collector import Collector
from catalog.storage.tables import BlobRow
from tests.workers.conftest import MIB, PRUNE
from workers.lease import Lease

CLUSTER = {"type": "cluster", "clusters": 16}


def test_a_result_is_published(bench_of_each_level):
    bench = bench_of_each_level
    job = bench.run("succeed")
    assert (job.state, job.error) == ("succeeded", None)
    assert job.result["artifacts"][0]["name"] == "model.onnx"
    assert bench.artifact(job.id) == b"compressed"
    types = [type_ for type_, _ in bench.events(job.id)]
    assert (types[0], types[1], types[-1]) == ("queued", "running", "succeeded")
    bench.assert_tidy()


@pytest.mark.parametrize(
    ("order", "code", "words"),
    [
        ({"number": signal.SIGKILL}, "child_killed", "out of memory"),
        ({"number": signal.SIGSEGV}, "child_crashed", "SIGSEGV"),
        ({"status": 3}, "child_crashed", "exit status 3"),
        ({"status": 0}, "child_crashed", "exit status 0"),
    ],
)
def test_a_child_that_dies_costs_an_attempt(bench_of_each_level, order, code, words):
    bench = bench_of_each_level
    job = bench.run("die", **order)
    assert job.state == "queued"
    assert job.available_at > job.created_at + 0.5
    with bench.database.read() as session:
        (attempt,) = Jobs(session).attempts(job.id)
    assert (attempt.error["code"], attempt.error["retryable"]) == (code, True)
    assert words in attempt.error["message"]
    assert "last words" in attempt.error["log_tail"]
    bench.assert_tidy()


def test_the_last_attempt_fails_the_job(bench):
    job = bench.run("die", max_attempts=1)
    assert (job.state, job.error["code"], job.error["attempt"]) == ("failed", "child_crashed", 1)


@pytest.mark.parametrize("retryable", [False, True])
def test_a_pipelines_own_error_is_passed_on(bench, retryable):
    job = bench.run("reject", retryable=retryable, max_attempts=2)
    assert job.state == ("queued" if retryable else "failed")
    if not retryable:
        assert job.error["code"] == "operator_unsupported"
        assert job.error["message"] == "Node n1 has an operator that cannot be pruned."


def test_a_defect_in_the_pipeline_shows_its_traceback(bench):
    job = bench.run("explode")
    assert (job.state, job.error["code"]) == ("failed", "internal_error")
    assert job.error["message"] == "RuntimeError: a defect"
    assert "in explode" in job.error["log_tail"]
    assert len(job.error["log_tail"].encode()) <= 4096


@pytest.mark.parametrize(("do", "order"), [("allocate", {"size": 3 * 1024 * MIB}), ("abort_without_memory", {})])
def test_too_little_memory_names_the_limit(bench_of_each_level, do, order):
    job = bench_of_each_level.run(do, **order)
    assert (job.state, job.error["code"], job.error["retryable"]) == ("failed", "out_of_memory", False)
    assert "2048 MiB" in job.error["message"]


@pytest.mark.parametrize("do", ["sleep", "stubborn"])
def test_cancelling_ends_the_child(bench_of_each_level, do):
    bench = bench_of_each_level
    job_id, thread = bench.start(do)
    with bench.database.write() as session:
        Jobs(session).request_cancel(job_id)
    asked = time.monotonic()
    thread.join(20)
    assert time.monotonic() - asked < 8
    assert bench.job(job_id).state == "cancelled"
    bench.assert_tidy()


def test_the_time_limit_expires_the_job(bench):
    started = time.monotonic()
    job = bench.run("sleep", time_limit_seconds=1.5)
    assert 1.5 <= time.monotonic() - started < 20
    assert (job.state, job.error["code"]) == ("expired", "time_limit_exceeded")
    assert "1.5 s" in job.error["message"]
    bench.assert_tidy()


def test_a_draining_worker_gives_its_job_back(bench):
    job_id, thread = bench.start("sleep", max_attempts=1)
    bench.drain.begin(0.2)
    thread.join(10)
    job = bench.job(job_id)
    assert (job.state, job.attempts_left) == ("queued", 1)
    assert len(list(bench.settings.folder("broker/queue").iterdir())) == 1
    bench.assert_tidy()


def test_a_draining_worker_lets_its_job_finish_in_time(bench):
    job_id, thread = bench.start("sleep", seconds=0.3)
    bench.drain.begin(30)
    thread.join(10)
    assert bench.job(job_id).state == "succeeded"


def test_a_worker_that_lost_its_job_says_nothing_more(bench):
    job_id, thread = bench.start("sleep")
    with bench.database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(lease_until=db_now() - 1))
        assert Leases(session).sweep() == {Queue.CPU}
    successor, _ = bench.claim("successor")
    before = bench.events(job_id)
    thread.join(10)
    assert bench.events(job_id) == before
    assert (bench.job(job_id).owner, bench.job(job_id).attempt) == ("successor", successor.attempt)
    bench.assert_tidy()


def test_the_lease_is_renewed_while_the_child_works(bench):
    job_id, thread = bench.start("sleep", seconds=1)
    first = bench.job(job_id).lease_until
    thread.join(10)
    assert bench.job(job_id).state == "succeeded"
    assert first is not None


def test_a_database_that_is_away_for_a_while_costs_nothing(bench, monkeypatch):
    job_id, thread = bench.start("sleep", seconds=0.5)
    away_until = time.monotonic() + 1.5
    write, read = bench.database.write, bench.database.read

    def unreachable(method):
        def call():
            if time.monotonic() < away_until:
                raise OperationalError("SELECT 1", {}, Exception("connection refused"))
            return method()

        return call

    monkeypatch.setattr(bench.database, "write", unreachable(write))
    monkeypatch.setattr(bench.database, "read", unreachable(read))
    thread.join(15)
    monkeypatch.undo()
    assert bench.job(job_id).state == "succeeded"
    assert bench.job(job_id).attempt == 1


def test_a_database_that_stays_away_ends_the_child(bench, monkeypatch):
    job_id, thread = bench.start("sleep")

    def call():
        raise OperationalError("SELECT 1", {}, Exception("connection refused"))

    monkeypatch.setattr(bench.database, "write", call)
    monkeypatch.setattr(bench.database, "read", call)
    thread.join(20)
    assert not thread.is_alive()
    monkeypatch.undo()
    assert bench.job(job_id).state == "running"
    bench.assert_tidy()


def test_finished_steps_are_not_run_again_after_a_crash(bench):
    job_id = bench.add("steps", pipeline=[PRUNE, PRUNE | {"amount": 0.6}, CLUSTER], crash_after=1)
    bench.supervisor.run(*bench.claim())
    assert bench.job(job_id).state == "queued"
    with bench.database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(available_at=0))
    bench.supervisor.run(*bench.claim())
    job = bench.job(job_id)
    assert job.state == "succeeded"
    steps = [data for type_, data in bench.events(job_id) if type_ == "step"]
    assert [(step["index"], step["cached"]) for step in steps] == [
        (0, False),
        (1, False),
        (0, True),
        (1, True),
        (2, False),
    ]
    assert [step["type"] for step in steps] == ["prune", "prune", "prune", "prune", "cluster"]


def test_another_attempt_goes_on_from_the_last_checkpoint(bench):
    job_id = bench.add("epochs", pipeline=[PRUNE], crash_after=1)
    bench.supervisor.run(*bench.claim())
    assert bench.job(job_id).state == "queued"
    with bench.database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(available_at=0))
    bench.supervisor.run(*bench.claim())
    assert bench.job(job_id).state == "succeeded"
    (artifact,) = bench.job(job_id).result["artifacts"]
    assert artifact["sha256"] == hashlib.sha256(b"trained from epoch 2").hexdigest()
    # A checkpoint is no step: nobody is told of one.
    assert [type_ for type_, _ in bench.events(job_id) if type_ == "step"] == []


def test_a_step_cache_whose_bytes_are_gone_is_no_obstacle(bench):
    order = {"pipeline": [PRUNE]}
    assert bench.run("steps", **order).state == "succeeded"
    with bench.database.read() as session:
        (row,) = session.query(StepCacheRow).all()
    bench.blobs.delete(row.files[0]["sha256"])
    job = bench.run("steps", **order)
    assert job.state == "succeeded"
    assert job.result["steps"][0]["cached"] is False


def test_a_child_cannot_fill_the_cache_for_others(bench):
    job = bench.run("poison")
    assert job.state == "succeeded"
    with bench.database.read() as session:
        assert session.query(StepCacheRow).all() == []


def test_progress_is_thinned_out_but_no_phase_is_lost(bench):
    started = time.monotonic()
    job = bench.run("chatter")
    seconds = time.monotonic() - started
    assert job.state == "succeeded"
    reports = [data for type_, data in bench.events(job.id) if type_ == "progress"]
    phases = list(dict.fromkeys(report["phase"] for report in reports))
    assert [phase for phase in phases if phase != "loading"] == ["pruning", "clustering", "quantizing", "publishing"]
    assert len(reports) <= 6 + seconds * 4
    fractions = [report["progress"] for report in reports]
    assert fractions == sorted(fractions)


@pytest.mark.parametrize(
    "line",
    [
        "this is no JSON\n",
        "[1, 2]\n",
        '{"type": "progress", "phase": "x", "fraction": NaN}\n',
        '{"type": "progress", "phase": "x", "fraction": 7}\n',
        '{"type": "progress", "phase": "x", "fraction": 0.5, "message": "\\ud800"}\n',
        '{"type": "progress", "phase": "a\\u0000b", "fraction": 0.5}\n',
        '{"type": "progress", "phase": "x", "fraction": 0.5, "surprise": 1}\n',
        '{"type": "step", "key": "../../etc", "folder": "out"}\n',
        '{"type": "wish", "sql": "DROP TABLE jobs"}\n',
        "\xff\xfe\n",
        "[" * 100_000 + "\n",
    ],
)
def test_a_child_that_says_what_it_must_not_is_ended(bench, line):
    job = bench.run("talk", line=line)
    assert (job.state, job.error["code"], job.error["retryable"]) == ("failed", "child_misbehaved", False)
    bench.assert_tidy()


def test_a_line_without_end_is_cut_off(bench):
    job = bench.run("endless_line")
    assert (job.state, job.error["code"]) == ("failed", "child_misbehaved")


@pytest.mark.parametrize(
    ("what", "order"),
    [
        ("symlink", {}),
        ("hardlink", {}),
        ("fifo", {}),
        ("folder", {}),
        ("out_is_link", {}),
        ("changed", {"sha256": "0" * 64}),
        ("changed", {"announce": ["model.onnx", "model.onnx"]}),
        ("changed", {"announce": ["missing.onnx"]}),
        ("changed", {"announce": ["../request.json"]}),
        ("changed", {"announce": [".hidden"]}),
        ("changed", {"announce": ["/etc/hostname"]}),
    ],
)
def test_only_plain_files_that_are_what_they_are_said_to_be_are_published(bench, what, order):
    job = bench.run("bad_artifact", what=what, **order)
    assert (job.state, job.error["code"]) == ("failed", "child_misbehaved")
    with bench.database.read() as session:
        assert Jobs(session).artifacts(job.id) == []
    bench.assert_tidy()


def test_folders_that_a_child_closed_are_removed_too(bench):
    assert bench.run("bad_artifact", what="closed_folder").state == "succeeded"
    bench.assert_tidy()


def test_processes_that_a_child_started_end_with_it(bench):
    job = bench.run("leave_grandchild")
    pid = int(bench.artifact(job.id))
    for _ in range(200):
        if not Path(f"/proc/{pid}").exists() or "Z" in Path(f"/proc/{pid}/stat").read_text().split(")")[1]:
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    raise AssertionError("a grandchild outlived its job")


def test_a_deleted_model_is_a_clear_error(bench):
    job_id = bench.add()
    with bench.database.write() as session:
        session.execute(delete(ModelRow))
    bench.supervisor.run(*bench.claim())
    job = bench.job(job_id)
    assert (job.state, job.error["code"], job.error["retryable"]) == ("failed", "model_deleted", False)


def test_a_model_whose_bytes_are_gone_is_a_clear_error(bench):
    job_id = bench.add()
    with bench.database.read() as session:
        sha256 = session.query(ModelRow).one().sha256
    bench.blobs.delete(sha256)
    bench.supervisor.run(*bench.claim())
    assert bench.job(job_id).error["code"] == "model_deleted"
    bench.assert_tidy()


def test_a_full_disk_is_worth_another_attempt(bench, monkeypatch):
    job_id = bench.add()
    monkeypatch.setattr(bench.blobs, "free_bytes", lambda: 5)
    bench.supervisor.run(*bench.claim())
    assert bench.job(job_id).state == "queued"
    with bench.database.read() as session:
        (attempt,) = Jobs(session).attempts(job_id)
        assert Jobs(session).artifacts(job_id) == []
    assert (attempt.error["code"], attempt.error["retryable"]) == ("store_full", True)
    bench.assert_tidy()


def test_a_store_that_is_away_for_a_while_costs_nothing(bench, monkeypatch):
    """Before the child starts, when a step is kept, and when the result is stored."""
    asked = []
    size = Blobs._size

    def answer_now_and_then(blobs, key):
        asked.append(key)
        if len(asked) % 3:
            raise StoreUnavailable("The blob store does not answer; try again later.")
        return size(blobs, key)

    job_id = bench.add("steps")
    monkeypatch.setattr(Blobs, "_size", answer_now_and_then)
    bench.supervisor.run(*bench.claim())
    monkeypatch.undo()
    assert (bench.job(job_id).state, bench.job(job_id).attempt) == ("succeeded", 1)
    assert len(asked) >= 5
    bench.assert_tidy()


@pytest.mark.parametrize("stop", ["time limit", "cancel", "patience"])
def test_a_store_that_stays_away_is_not_waited_for_for_ever(bench, monkeypatch, stop):
    def away(*_):
        raise StoreUnavailable("The blob store does not answer; try again later.")

    job_id = bench.add(time_limit_seconds=1.5 if stop == "time limit" else 60)
    monkeypatch.setattr(Blobs, "_size", away)
    if stop == "patience":
        patiently = Lease.patiently
        monkeypatch.setattr(Lease, "patiently", lambda lease, action, **_: patiently(lease, action, store_seconds=1))
    thread = threading.Thread(target=bench.supervisor.run, args=bench.claim())
    thread.start()
    if stop == "cancel":
        time.sleep(0.7)
        with bench.database.write() as session:
            Jobs(session).request_cancel(job_id)
    thread.join(30)
    assert not thread.is_alive()
    monkeypatch.undo()
    job = bench.job(job_id)
    assert job.state == {"time limit": "expired", "cancel": "cancelled", "patience": "queued"}[stop]
    if stop == "patience":
        with bench.database.read() as session:
            (attempt,) = Jobs(session).attempts(job_id)
        assert (attempt.error["code"], attempt.error["retryable"]) == ("store_unavailable", True)
    bench.assert_tidy()


def test_bytes_that_were_collected_before_they_were_named_are_worth_another_attempt(bench, monkeypatch):
    job_id = bench.add()
    publish = Leases.publish

    def late(leases, claim, *, artifacts, result):
        with monkeypatch.context() as patch:
            patch.setattr(Leases, "publish", publish)
            leases._session.execute(update(BlobRow).values(live=False, generation=BlobRow.generation + 1))
            return leases.publish(claim, artifacts=artifacts, result=result)

    monkeypatch.setattr(Leases, "publish", late)
    bench.supervisor.run(*bench.claim())
    monkeypatch.undo()
    assert bench.job(job_id).state == "queued"
    with bench.database.read() as session:
        (attempt,) = Jobs(session).attempts(job_id)
    assert (attempt.error["code"], attempt.error["retryable"]) == ("bytes_gone", True)
    with bench.database.write() as session:
        session.execute(update(JobRow).where(JobRow.id == job_id).values(available_at=0))
    bench.supervisor.run(*bench.claim())
    assert bench.job(job_id).state == "succeeded"
    assert bench.artifact(job_id)


def test_what_a_job_left_is_collected_when_it_is_forgotten(bench):
    """Model, artifacts, steps and checkpoints of a real run."""
    bench.settings = bench.settings.model_copy(update={"collect_grace_seconds": -1.0, "job_retention_seconds": 1.0})
    job = bench.run("steps")
    collector = Collector(bench.settings, bench.database, bench.blobs)
    collector.run()
    assert bench.artifact(job.id)
    with bench.database.write() as session:
        session.execute(update(JobRow).values(finished_at=0.0))
        assert session.query(StepCacheRow).all() != []
        Models(session).delete(Models(session).get(job.model_id))
        # They go with their model.
        assert session.query(StepCacheRow).all() == []
    done = collector.run()
    assert (done["jobs"], done["steps"], done["blobs"] > 2) == (1, 0, True)
    assert [batch for _, batch in bench.blobs.copies()] == []


def test_an_inspection_that_finds_no_model_rejects_it(bench):
    job = bench.run(kind=JobKind.INSPECT_MODEL, content=b"this is no model")
    assert job.state == "failed"
    with bench.database.read() as session:
        model = session.query(ModelRow).one()
    assert (model.state, model.error["code"]) == ("rejected", "not_onnx")


SOURCE = {"architecture": {"layers": [{"type": "relu"}]}, "input": {"shape": [3]}, "file": {}}


def make(bench, files, source=SOURCE):
    """Inspect weights of which the child says that it makes these files."""
    content = json.dumps({"make": files}).encode()
    job_id = bench.add(content=content, kind=JobKind.INSPECT_MODEL, source=source)
    bench.supervisor.run(*bench.claim())
    with bench.database.read() as session:
        return bench.job(job_id), session.query(ModelRow).one()


def test_what_an_inspection_makes_of_weights_becomes_the_model(bench):
    job, model = make(bench, {"model.onnx": "graph", "state_dict.safetensors": "rest"})
    assert (job.state, model.state, model.source) == ("succeeded", "ready", SOURCE)
    assert [(file["name"], file["size"]) for file in model.files] == [("model.onnx", 5), ("state_dict.safetensors", 4)]
    assert [b"".join(bench.blobs.read(file["sha256"])) for file in model.files] == [b"graph", b"rest"]
    parts = "".join(f"{file['name']}\0{file['sha256']}\n" for file in model.files)
    assert (model.sha256, model.size) == (hashlib.sha256(parts.encode()).hexdigest(), 9)
    bench.assert_tidy()


def test_what_an_inspection_decodes_becomes_the_model(bench):
    job_id = bench.add(content=b"LEVITYgraph", kind=JobKind.INSPECT_MODEL)
    bench.supervisor.run(*bench.claim())
    assert bench.job(job_id).state == "succeeded"
    with bench.database.read() as session:
        model = session.query(ModelRow).one()
    (file,) = model.files
    assert (model.state, model.source, file["name"], file["size"]) == ("ready", None, "model.onnx", 5)
    assert b"".join(bench.blobs.read(model.sha256)) == b"graph"
    bench.assert_tidy()


@pytest.mark.parametrize(
    "files", [{}, {"model.onnx": ""}, {"model.onnx": "", "other": ""}, {"a": "", "model.onnx": ""}]
)
def test_an_inspection_that_makes_other_files_rejects_the_model(bench, files):
    job, model = make(bench, files)
    assert job.error["code"] == "child_misbehaved"
    assert (model.state, [file["name"] for file in model.files]) == ("rejected", ["model.onnx"])
    assert model.summary is None
