"""The probe of a worker's container."""

from __future__ import annotations

import os
import subprocess
import sys
import time

from workers.health import healthy
from workers.workspace import Workspace


def probe(data, **environment):
    done = subprocess.run(
        [sys.executable, "-P", "-m", "workers.health"],
        env={**os.environ, "LEVITY_DATA_DIR": str(data), **environment},
        capture_output=True,
        timeout=30,
        check=False,
    )
    return done.returncode


def test_a_worker_is_healthy_while_it_lives_and_looks_around(tmp_path):
    work = tmp_path / "work"
    assert probe(tmp_path) == 1
    work.mkdir()
    workspace = Workspace(work, "wrk_one")
    assert probe(tmp_path) == 0
    assert healthy(work, sweep_seconds=1)

    long_ago = time.time() - 45
    os.utime(work / "wrk_one.lock", (long_ago, long_ago))
    assert probe(tmp_path, LEVITY_SWEEP_SECONDS="1") == 1, "it hangs"
    assert probe(tmp_path, LEVITY_SWEEP_SECONDS="20") == 0, "it need not look around so often"
    workspace.beat()
    assert probe(tmp_path, LEVITY_SWEEP_SECONDS="1") == 0

    os.close(workspace._lock)  # as when the process is killed: the lock goes, the file stays
    assert (work / "wrk_one.lock").exists()
    assert probe(tmp_path) == 1


def test_a_worker_that_sweeps_is_healthy(tmp_path):
    from tests.workers.test_process import Deployment

    deployment = Deployment(tmp_path / "data", sweep_seconds="0.2")
    try:
        worker = deployment.start()
        deployment.wait_until(deployment.workers, seconds=120)
        (lock,) = (tmp_path / "data" / "work").glob("wrk_*.lock")
        before = lock.stat().st_mtime_ns
        deployment.wait_until(lambda: lock.stat().st_mtime_ns > before, seconds=60)
        assert probe(tmp_path / "data") == 0
        worker.kill()
        worker.wait()
        assert probe(tmp_path / "data") == 1
    finally:
        deployment.close()
