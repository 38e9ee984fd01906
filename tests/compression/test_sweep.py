"""Latency over batch sizes and threads."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from pydantic import ValidationError

from compression.benchmarking.inputs import Inputs
from compression.benchmarking.spec import BenchmarkSpec
from compression.benchmarking.subject import Subject
from compression.benchmarking.sweep import sweep
from compression.context import Context
from compression.errors import Cancelled
from compression.graph.inspect import inspect_model
from tests.compression.models import cnn, make_model, save, value

QUICK = BenchmarkSpec(sweep_seconds=0.02, min_rounds=5, max_rounds=10, threads=1)


def swept(tmp_path, model, said=None, **spec):
    path = save(model, tmp_path / "model.onnx")
    summary = inspect_model(path)
    spec = QUICK.model_copy(update=spec)

    def progress(_phase, fraction, message=""):
        if said is not None:
            said.append((fraction, message))

    context = Context(tmp_path, progress=progress)
    return sweep(Subject(path, path, spec, context, Inputs(summary, summary, None, spec, 0), 0, "cpu"))


def test_every_combination_has_a_row(tmp_path):
    said = []
    points, notes = swept(tmp_path, cnn(), said, batch_sizes=(1, 64), thread_counts=(1, 2))
    assert [(point.batch_size, point.threads) for point in points] == [(1, 1), (1, 2), (64, 1), (64, 2)]
    assert notes == []
    assert said[1] == (0.25, "measuring latency at batch size 1 and 2 threads")
    for point in points:
        assert 3 <= point.pairs <= 10
        assert point.interval[0] <= point.ratio <= point.interval[1]
        # Throughput follows the mean of all calls, of which the median may be far away.
        assert point.original_throughput < 5 * point.batch_size / point.original_seconds
    # 64 pictures in one call take longer than one.
    assert points[0].original_seconds < points[2].original_seconds


def test_one_list_is_enough(tmp_path):
    points, _ = swept(tmp_path, cnn(), batch_sizes=(3,))
    assert [(point.batch_size, point.threads) for point in points] == [(3, 1)]
    points, _ = swept(tmp_path, cnn(), thread_counts=(1,))
    assert [(point.batch_size, point.threads) for point in points] == [(1, 1)]


def test_a_fixed_batch_is_said_and_kept(tmp_path):
    note = "Batch sizes were not varied: the model takes 2 samples at a time."
    assert swept(tmp_path, cnn(batch=2), batch_sizes=(1, 4)) == ([], [note])
    points, notes = swept(tmp_path, cnn(batch=2), batch_sizes=(1, 4), thread_counts=(1,))
    assert [point.batch_size for point in points] == [2]
    assert notes == [note]
    assert swept(tmp_path, cnn(batch=2), batch_sizes=(2,))[1] == []


def test_what_does_not_run_leaves_the_others(tmp_path):
    """A model whose batch axis is open by name, and which takes two samples."""
    picky = make_model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], "reshape")],
        [value("x", ["batch", 4])],
        [value("y", [4, 2])],
        {"shape": np.array([4, 2], np.int64)},
    )
    points, notes = swept(tmp_path, picky, batch_sizes=(1, 2))
    assert [point.batch_size for point in points] == [2]
    assert notes[0].startswith("Latency was not measured at batch size 1 and 1 threads: 'model.onnx' does not run: ")


def test_can_be_cancelled(tmp_path):
    path = save(cnn(), tmp_path / "model.onnx")
    summary = inspect_model(path)
    spec = QUICK.model_copy(update={"batch_sizes": (1,)})
    context = Context(tmp_path, is_cancelled=lambda: True)
    with pytest.raises(Cancelled):
        sweep(Subject(path, path, spec, context, Inputs(summary, summary, None, spec, 0), 0, "cpu"))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"batch_sizes": (1, 2, 2)}, "batch_sizes names a value twice"),
        ({"thread_counts": (0,)}, "greater than or equal to 1"),
        ({"batch_sizes": (1, 2, 4, 8, 16), "thread_counts": (1, 2, 3, 4)}, "make 20 combinations, more than 16"),
    ],
)
def test_sweeps_are_bounded(fields, message):
    with pytest.raises(ValidationError, match=message):
        BenchmarkSpec(**fields)
