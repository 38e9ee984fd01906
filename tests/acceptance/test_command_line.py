"""The `levity` command, from outside."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import onnx
import pytest

from levity import Levity
from tests.acceptance import processes
from tests.acceptance.conftest import DIGITS
from tests.acceptance.harness import BRIEF, FAST, PRUNE
from tests.acceptance.processes import descendants, eventually, runs

PRUNE_HALF = ["--step", '{"type": "prune", "amount": 0.5}']


def levity(*arguments, **options):
    command = [sys.executable, "-m", "levity", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=90, check=False, **options)


@pytest.fixture
def environment(tmp_path):
    kept = {name: value for name, value in os.environ.items() if not name.startswith("LEVITY_")}
    return kept | FAST | {"LEVITY_DATA_DIR": str(tmp_path / "data")}


def test_compress(service, tmp_path):
    files = ["--calibration", DIGITS / "calibration.npz", "--evaluation", DIGITS / "evaluation.npz"]
    static = ["--step", '{"type": "quantize", "mode": "static"}']
    where = ["--url", service.client.base_url, "--out", tmp_path / "out"]
    done = levity("compress", DIGITS / "digits-cnn.onnx", *PRUNE_HALF, *static, *files, *where)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[2].startswith("file size")
    assert "quantizing" in done.stderr
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [step["type"] for step in report["steps"]] == ["prune", "quantize"]
    onnx.checker.check_model(onnx.load(tmp_path / "out" / "model.onnx"))


def test_compressing_what_is_no_model_is_one_line(service, tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"GIF89a")
    where = ["--url", service.client.base_url, "--out", tmp_path / "out"]
    done = levity("compress", tmp_path / "m.onnx", *PRUNE_HALF, *where)
    assert done.returncode == 1
    assert done.stderr.startswith("levity: ")
    assert done.stderr.endswith("(not_onnx)\n")
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "out").exists()


def test_demo_leaves_a_report_and_nothing_else(tmp_path, environment):
    processes.adopt_orphans()
    before = {info.pid for info in descendants(os.getpid())}
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    done = levity("demo", "--out", tmp_path / "report", env=environment | {"TMPDIR": str(scratch)})
    assert done.returncode == 0, done.stderr
    names = {path.name for path in (tmp_path / "report").iterdir()}
    assert {"model.onnx", "report.html", "report.json", "manifest.json"} <= names
    assert "file size" in done.stdout
    assert "accuracy" in done.stdout
    assert list(scratch.iterdir()) == []
    assert [info for info in descendants(os.getpid()) if info.pid not in before and runs(info)] == []


def test_killed_supervisor_takes_all_with_it_and_a_new_one_goes_on(tmp_path, environment):
    processes.adopt_orphans()

    def serve():
        with (tmp_path / "log").open("ab") as log:
            supervisor = subprocess.Popen(
                [sys.executable, "-m", "levity", "serve", "--port", "0"],
                env=environment,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        return supervisor, supervisor.stdout.readline().split()[4]

    supervisor, url = serve()
    try:
        with Levity(url) as client:
            model = client.create_model(DIGITS / "digits-cnn.onnx")
            job = client.submit(model, PRUNE, benchmark=BRIEF | {"max_seconds": 3, "max_rounds": 1_000_000})
            eventually(lambda: client.get_job(job.id).phase == "benchmarking")
        below = descendants(supervisor.pid)
        assert len(below) > 3
        supervisor.kill()
        supervisor.wait()
        supervisor.stdout.close()
        eventually(lambda: not any(map(runs, below)), seconds=5, what="all processes died")

        supervisor, url = serve()
        with Levity(url) as client:
            done = client.wait(job.id, timeout=60)
        assert (done.state, done.attempt) == ("succeeded", 2)
        supervisor.terminate()
        assert supervisor.wait(timeout=20) == 0
    finally:
        supervisor.kill()
        supervisor.wait()
        supervisor.stdout.close()
