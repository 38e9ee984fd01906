"""Time by operator and node."""

from __future__ import annotations

import numpy as np
import pytest

from compression.benchmarking.inputs import Inputs
from compression.benchmarking.profiling import profile, summarize
from compression.benchmarking.spec import BenchmarkSpec
from compression.benchmarking.subject import Subject
from compression.context import Context
from compression.errors import StepFailed
from compression.graph.inspect import inspect_model
from tests.compression.models import cnn, save


def events(*runs):
    """What the runtime writes for runs of `{(node, operator): microseconds}`."""
    yield {"cat": "Session", "name": "session_initialization", "dur": 9, "args": {}}
    for run in runs:
        for (node, operator), microseconds in run.items():
            yield {
                "cat": "Node",
                "name": f"{node}_kernel_time",
                "dur": microseconds,
                "args": {"op_name": operator},
            }
        yield {"cat": "Session", "name": "model_run", "dur": 1, "args": {}}


def test_times_by_hand():
    first = {("a", "Conv"): 9000, ("b", "Conv"): 9000, ("c", "Relu"): 9000}
    later = [{("a", "Conv"): 300 + more, ("b", "Conv"): 100, ("c", "Relu"): 100} for more in (0, 300, 10)]
    found = summarize(events(first, *later))
    # The first run does not count; of 300, 600 and 310 the median is 310.
    assert found.runs == 3
    assert found.seconds == pytest.approx(510e-6)
    assert [(one.operator, one.nodes) for one in found.operators] == [("Conv", 2), ("Relu", 1)]
    assert found.operators[0].seconds == pytest.approx(410e-6)
    assert found.operators[0].share == pytest.approx(410 / 510)
    assert [(one.node, one.operator) for one in found.nodes] == [("a", "Conv"), ("b", "Conv"), ("c", "Relu")]
    assert found.nodes[0].share == pytest.approx(310 / 510)


def test_only_the_slowest_nodes_are_listed():
    run = {(f"n{index}", "Relu"): 100 - index for index in range(30)}
    found = summarize(events(run, run))
    assert [one.node for one in found.nodes] == [f"n{index}" for index in range(20)]
    assert found.operators[0].nodes == 30


def test_nothing_was_written():
    assert summarize([]).operators == ()
    zero = {("a", "Conv"): 0}
    assert summarize(events(zero, zero)).operators[0].share == 0.0


def subject(tmp_path, path, spec):
    summary = inspect_model(path)
    inputs = Inputs(summary, summary, None, spec, 0)
    return Subject(path, path, spec, Context(tmp_path), inputs, 0, "cpu")


def test_a_real_model(tmp_path):
    path = save(cnn(), tmp_path / "model.onnx")
    what = subject(tmp_path, path, BenchmarkSpec(profile_runs=3, threads=1))
    (tmp_path / "profiles").mkdir()
    found = profile(what, path, {"x": np.zeros((1, 1, 8, 8), np.float32)}, tmp_path / "profiles")
    assert found.runs == 3
    operators = {one.operator: one for one in found.operators}
    assert {"Conv", "Gemm", "MaxPool"} <= set(operators)
    assert operators["Conv"].nodes == 2
    assert sum(one.share for one in found.operators) == pytest.approx(1.0)
    assert list((tmp_path / "profiles").iterdir()) == []


def test_a_model_that_does_not_run_is_named(tmp_path):
    path = save(cnn(), tmp_path / "model.onnx")
    what = subject(tmp_path, path, BenchmarkSpec(profile_runs=3, threads=1))
    with pytest.raises(StepFailed, match=r"'model\.onnx' does not run under the profiler: ") as caught:
        profile(what, path, {"x": np.zeros((1, 1, 9, 9), np.float32)}, tmp_path)
    assert caught.value.code == "benchmark_failed"
