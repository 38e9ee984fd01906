"""Worker processes as an operator starts them, with the real library."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from onnx import TensorProto, helper, numpy_helper
from redis import Redis
from redis.exceptions import RedisError

from catalog.blobs import Blobs
from catalog.broker import Wakeups, build_celery
from catalog.db import Database, after_commit
from catalog.jobs.repository import Jobs, NewJob
from catalog.jobs.states import JobKind, JobState, Queue
from catalog.models.repository import Models
from catalog.settings import Settings
from catalog.workers.repository import Workers
from workers.devices import cuda_devices

REDIS_URL = os.environ.get("LEVITY_TEST_REDIS_URL", "redis://127.0.0.1:6379/13")


def tiny_model() -> bytes:
    import numpy as np

    weights = numpy_helper.from_array(np.arange(12, dtype=np.float32).reshape(4, 3), "w")
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 3])],
        [weights],
    )
    opsets = [helper.make_opsetid("", 17)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8).SerializeToString()


class Deployment:
    """A data folder, and worker processes on it."""

    def __init__(self, root: Path, **settings: str) -> None:
        settings = {"sweep_seconds": "600", "drain_seconds": "1", "grace_seconds": "1", **settings}
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("LEVITY_")}
        self.environment |= {f"LEVITY_{name.upper()}": value for name, value in settings.items()}
        self.environment["LEVITY_DATA_DIR"] = str(root)
        self.settings = Settings(data_dir=root, **settings)
        self.database = Database(self.settings.resolved_database_url)
        self.database.migrate()
        self.blobs = Blobs.from_settings(self.settings)
        self.wakeups = Wakeups(build_celery(self.settings))
        self.processes: list[subprocess.Popen[str]] = []
        self.log = root / "worker.log"

    def start(self, *arguments: str, queue: str = "io") -> subprocess.Popen[str]:
        with self.log.open("a") as log:
            process = subprocess.Popen(
                [sys.executable, "-m", "workers", "--queue", queue, *arguments],
                env=self.environment,
                stderr=log,
                text=True,
            )
        self.processes.append(process)
        return process

    def wait_until(self, condition, seconds: float = 30):
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if found := condition():
                return found
            time.sleep(0.01)
        raise AssertionError(self.log.read_text())

    def workers(self):
        with self.database.read() as session:
            return Workers(session).alive(seconds=60)

    def add_inspection(self, content: bytes | None = None, *, wake: bool = True) -> str:
        sha256, size = self.blobs.take_in(iter([tiny_model() if content is None else content]))
        with self.database.write() as session:
            model = Models(session).add(name="m", files=[{"name": "m.onnx", "sha256": sha256, "size": size}])
            new = NewJob(JobKind.INSPECT_MODEL, Queue.IO, max_attempts=3, time_limit_seconds=60, model_id=model.id)
            job_id = Jobs(session).add(new).id
            if wake:
                after_commit(session, lambda: self.wakeups.wake(Queue.IO))
        return job_id

    def add_long_job(self) -> str:
        """A compression with a single attempt that measures for minutes."""
        spec = {
            "steps": [{"type": "prune", "amount": 0.5}],
            "benchmark": {"max_seconds": 120, "max_rounds": 1_000_000},
        }
        sha256, size = self.blobs.take_in(iter([tiny_model()]))
        with self.database.write() as session:
            model = Models(session).add(name="m", files=[{"name": "m.onnx", "sha256": sha256, "size": size}])
            new = NewJob(
                JobKind.COMPRESS, Queue.CPU, max_attempts=1, time_limit_seconds=300, model_id=model.id, spec=spec
            )
            return Jobs(session).add(new).id

    def job(self, job_id: str):
        with self.database.read() as session:
            return Jobs(session).get(job_id)

    def ended(self, job_id: str):
        def look():
            row = self.job(job_id)
            return row if JobState(row.state).terminal else None

        return self.wait_until(look)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()
        self.database.dispose()


@pytest.fixture(params=["filesystem", "redis"])
def broker_url(request) -> Iterator[str]:
    if request.param == "filesystem":
        yield ""
        return
    redis = Redis.from_url(REDIS_URL, socket_connect_timeout=1)
    try:
        redis.flushdb()
    except RedisError as error:
        pytest.skip(f"no Redis at {REDIS_URL} (LEVITY_TEST_REDIS_URL): {error}")
    yield REDIS_URL
    redis.flushdb()
    redis.close()


@pytest.fixture
def deployment(tmp_path) -> Iterator[Deployment]:
    deployment = Deployment(tmp_path / "data")
    yield deployment
    deployment.close()


def test_a_worker_inspects_a_model_and_leaves_in_order(tmp_path, broker_url, database_url):
    deployment = Deployment(tmp_path / "data", broker_url=broker_url, database_url=database_url)
    try:
        worker = deployment.start()
        (row,) = deployment.wait_until(deployment.workers)
        assert (row.queue, row.concurrency) == ("io", 4)
        good, bad = deployment.add_inspection(), deployment.add_inspection(b"no model")
        assert deployment.ended(good).state == "succeeded"
        assert deployment.ended(bad).error["code"] == "not_onnx"
        with deployment.database.read() as session:
            models = Models(session).page(limit=10)
        assert [model.state for model in models] == ["rejected", "ready"]
        assert models[1].summary["parameters"] == 12
        worker.terminate()
        assert worker.wait(20) == 0
        assert deployment.workers() == []
        assert list(deployment.settings.folder("work").iterdir()) == []
    finally:
        deployment.close()


def test_a_lost_wake_up_costs_no_more_than_a_sweep(tmp_path):
    deployment = Deployment(tmp_path / "data", sweep_seconds="0.3")
    try:
        job_id = deployment.add_inspection(wake=False)
        deployment.start()
        assert deployment.ended(job_id).state == "succeeded"
        assert deployment.ended(deployment.add_inspection(wake=False)).state == "succeeded"
    finally:
        deployment.close()


def test_capabilities_are_registered(deployment):
    deployment.start("--concurrency", "2")
    (row,) = deployment.wait_until(deployment.workers)
    assert row.concurrency == 2
    facts = row.capabilities
    assert set(facts) == {
        "isa",
        "gpus",
        "providers",
        "sandbox",
        "reach",
        "versions",
        "memory_limit_bytes",
        "threads",
    }
    assert facts["sandbox"] in ("bubblewrap", "rlimits")
    assert facts["memory_limit_bytes"] == deployment.settings.resolved_memory_limit
    assert {"levity", "onnxruntime", "numpy", "onnx"} <= set(facts["versions"])
    assert facts["gpus"] == []
    # Children of the queue `cpu` see no graphics device, whatever the runtime was built for.
    assert facts["providers"] == ["cpu"]


def test_an_idle_worker_ends_soon_after_its_signal(deployment):
    worker = deployment.start()
    deployment.wait_until(deployment.workers)
    deployment.ended(deployment.add_inspection())
    asked = time.monotonic()
    worker.send_signal(signal.SIGINT)
    assert worker.wait(20) == 0
    assert time.monotonic() - asked < 15


@pytest.mark.parametrize("signals", [1, 2])
def test_a_worker_told_to_go_gives_its_job_back(tmp_path, signals):
    """After one signal the job may go on for a while, after two it may not."""
    deployment = Deployment(tmp_path / "data", drain_seconds="1" if signals == 1 else "600")
    try:
        job_id = deployment.add_long_job()
        worker = deployment.start(queue="cpu")
        deployment.wait_until(lambda: deployment.job(job_id).phase == "benchmarking")
        for _ in range(signals):
            worker.terminate()
            time.sleep(0.2)
        assert worker.wait(30) == 0
        job = deployment.job(job_id)
        assert (job.state, job.attempt, job.attempts_left) == ("queued", 1, 1)
        assert list(deployment.settings.folder("work").iterdir()) == []
    finally:
        deployment.close()


def test_a_limit_too_low_for_the_libraries_is_named(tmp_path):
    deployment = Deployment(tmp_path / "data", job_memory_limit_bytes=str(64 * 2**20))
    try:
        deployment.start()
        job = deployment.ended(deployment.add_inspection())
        assert (job.error["code"], job.attempt) == ("out_of_memory", 1)
        assert "64 MiB" in job.error["message"]
    finally:
        deployment.close()


def test_a_killed_workers_folder_is_removed_by_another(tmp_path):
    deployment = Deployment(tmp_path / "data", sweep_seconds="0.3")
    try:
        first = deployment.start()
        (lost,) = deployment.wait_until(deployment.workers)
        first.kill()
        first.wait()
        work = deployment.settings.folder("work")
        assert (work / lost.id).is_dir()
        deployment.start()
        deployment.wait_until(lambda: not (work / lost.id).exists())
    finally:
        deployment.close()


@pytest.mark.skipif(bool(cuda_devices()), reason="this machine has a CUDA device")
def test_queue_gpu_needs_a_gpu(deployment):
    worker = deployment.start(queue="gpu")
    assert worker.wait(30) == 1
    assert "Queue gpu needs a CUDA device" in deployment.log.read_text()
    assert "Traceback" not in deployment.log.read_text()


@pytest.mark.parametrize("arguments", [["--queue", "tpu"], ["--queue", "io", "--concurrency", "0"], []])
def test_wrong_arguments_are_explained(arguments):
    done = subprocess.run([sys.executable, "-m", "workers", *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "usage: python -m workers" in done.stderr
