"""Footprints in fresh processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from compression.benchmarking.memory import Footprint, Probes, memory_metrics
from compression.errors import StepFailed
from tests.compression.models import mlp, save


def test_a_larger_model_holds_more_memory(tmp_path):
    small = save(mlp(features=64, hidden=64), tmp_path / "small.onnx")
    large = save(mlp(features=64, hidden=100_000), tmp_path / "large.onnx")
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with Probes(scratch) as probes:
        original, result = probes.measure(large, small, {"x": np.zeros((1, 64), np.float32)}, threads=1)
    assert 0 < original.load_seconds < 60
    assert 0 < result.load_seconds < 60
    # 100,000 * (64 + 10) weights of 4 bytes, at least once; loading holds the file beside them.
    assert 29_600_000 < original.peak_bytes < 200_000_000
    assert 0 < result.peak_bytes < 15_000_000
    # What stays are the weights; the file's copy is gone.
    assert 29_600_000 < original.steady_bytes <= original.peak_bytes
    assert result.steady_bytes < 15_000_000


def test_a_model_that_does_not_run_is_named(tmp_path):
    path = save(mlp(), tmp_path / "model.onnx")
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    with (
        Probes(tmp_path) as probes,
        pytest.raises(StepFailed, match=r"could not load and run 'broken\.onnx'") as caught,
    ):
        probes.measure(path, broken, {"x": np.zeros((1, 64), np.float32)}, threads=1)
    assert caught.value.code == "benchmark_failed"


def test_no_process_is_left(tmp_path):
    with Probes(tmp_path) as probes:
        pids = [process.pid for process in probes._processes]
        assert all(Path(f"/proc/{pid}").exists() for pid in pids)
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


@pytest.mark.parametrize("module", ["compression.benchmarking.probe", "compression.verification"])
def test_processes_of_every_run_import_little(module):
    """Each run starts three of them, and waits."""
    heavy = {"onnx", "pydantic", "safetensors", "torch"}
    script = f"import sys, {module}; sys.exit(str({heavy!r} & set(sys.modules) or ''))"
    done = subprocess.run([sys.executable, "-c", script], check=False, capture_output=True, text=True, timeout=120)
    assert done.stderr.strip() == ""


def test_metrics_by_hand():
    metrics, notes = memory_metrics(Footprint(0.5, 4000, 3000), Footprint(0.25, 1000, 500))
    assert [(metric.name, metric.unit, metric.original, metric.result, metric.ratio) for metric in metrics] == [
        ("peak_memory_bytes", "bytes", 4000, 1000, 4.0),
        ("steady_memory_bytes", "bytes", 3000, 500, 6.0),
        ("load_seconds", "seconds", 0.5, 0.25, 2.0),
    ]
    assert notes == []


def test_a_system_without_peaks_is_said_so():
    metrics, notes = memory_metrics(Footprint(0.5, None, None), Footprint(0.25, None, None))
    assert [metric.name for metric in metrics] == ["load_seconds"]
    assert notes == ["Peak memory was not measured: this system does not keep it."]
