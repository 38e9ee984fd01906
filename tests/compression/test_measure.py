"""All measurements of one result together."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest
from onnx import TensorProto, helper

from compression import providers
from compression.benchmarking.measure import measure
from compression.context import Context
from compression.data import DataSource, open_dataset
from compression.errors import Cancelled, StepFailed
from compression.graph.inspect import inspect_model
from compression.spec import BenchmarkSpec
from tests.compression.models import cnn, digits, embedding, make_model, mlp, save, value

QUICK = BenchmarkSpec(max_seconds=0.02, min_rounds=5, max_rounds=20, threads=1)


def measured(tmp_path, original, compressed, evaluation=None, spec=QUICK, **context):
    before, after = save(original, tmp_path / "original.onnx"), save(compressed, tmp_path / "model.onnx")
    surroundings = Context(tmp_path, **context)
    return measure(before, after, spec, surroundings, inspect_model(before), inspect_model(after), evaluation, 0)


@pytest.fixture
def evaluation(tmp_path):
    pictures, labels = digits()
    np.savez(tmp_path / "evaluation.npz", pictures=pictures[:300], labels=labels[:300])
    return open_dataset(DataSource(tmp_path / "evaluation.npz"))


def test_a_classifier_with_labelled_data_gets_every_metric(tmp_path, evaluation):
    metrics, notes, _ = measured(tmp_path, cnn(), cnn(channels=(4, 16)), evaluation)
    assert [metric.name for metric in metrics] == [
        "file_bytes",
        "gzip_bytes",
        "parameters",
        "nonzero_parameters",
        "macs",
        "latency_p50",
        "latency_p90",
        "latency_p99",
        "throughput",
        "peak_memory_bytes",
        "steady_memory_bytes",
        "load_seconds",
        "accuracy",
        "top1_agreement",
        "cosine_similarity",
        "sqnr",
    ]
    by_name = {metric.name: metric for metric in metrics}
    assert 3 <= by_name["latency_p50"].samples <= 20
    assert by_name["accuracy"].samples == by_name["sqnr"].samples == 300
    assert all("Accuracy" not in note for note in notes)
    assert {entry.name for entry in tmp_path.iterdir()} == {"original.onnx", "model.onnx", "evaluation.npz"}


def test_at_most_so_many_samples_are_evaluated(tmp_path, evaluation):
    spec = QUICK.model_copy(update={"evaluation_samples": 50})
    metrics = {metric.name: metric for metric in measured(tmp_path, cnn(), cnn(), evaluation, spec).metrics}
    assert metrics["accuracy"].samples == 50
    assert metrics["accuracy"].original == metrics["accuracy"].result


def test_models_with_a_fixed_batch_evaluate_every_sample(tmp_path, evaluation):
    model = cnn(batch=7)
    metrics = {metric.name: metric for metric in measured(tmp_path, model, model, evaluation).metrics}
    # 300 is 42 batches of 7, and 6 samples.
    assert metrics["accuracy"].samples == 300
    # An average call of 7 samples.
    throughput = metrics["throughput"]
    assert throughput.original > 7 / metrics["latency_p99"].original


def test_without_data_inputs_are_made_up_and_it_is_said(tmp_path):
    metrics, notes, _ = measured(tmp_path, embedding(), embedding())
    assert {"latency_p50", "top1_agreement"} <= {metric.name for metric in metrics}
    assert "accuracy" not in {metric.name for metric in metrics}
    assert "Latency, memory and agreement of outputs were measured on made-up inputs." in notes
    assert "Accuracy was not measured: the job names no evaluation data." in notes


def test_data_without_labels_gives_agreement_alone(tmp_path):
    np.savez(tmp_path / "evaluation.npz", x=digits()[0][:50])
    metrics, notes, _ = measured(tmp_path, cnn(), cnn(1), open_dataset(DataSource(tmp_path / "evaluation.npz")))
    assert {"top1_agreement", "cosine_similarity", "sqnr"} <= {metric.name for metric in metrics}
    assert "Accuracy was not measured: the evaluation data has neither labels nor targets." in notes


def test_a_result_that_is_slower_and_larger_is_called_so(tmp_path):
    spec = QUICK.model_copy(update={"min_rounds": 20})
    metrics, notes, _ = measured(tmp_path, mlp(hidden=16), mlp(hidden=20_000), spec=spec)
    median = next(metric for metric in metrics if metric.name == "latency_p50")
    assert median.verdict.startswith("slower, 0.")
    assert any(note.startswith("The result is slower than the original on this machine: 0.") for note in notes)
    assert any(note.startswith("The file grew by ") for note in notes)


def test_how_it_was_timed_is_said(tmp_path):
    found = measured(tmp_path, cnn(), cnn(), spec=QUICK.model_copy(update={"max_seconds": 600.0, "loads": 3}))
    conditions = found.measured.conditions
    latency = next(metric for metric in found.metrics if metric.name == "latency_p50")
    assert conditions.pairs == latency.samples
    # 20 rounds are 7 for each of three loads.
    assert conditions.pairs + conditions.warm_up_pairs == 21
    assert (conditions.loads, conditions.threads, conditions.batch_size) == (3, 1, 1)
    assert conditions.pinned == (sys.platform == "linux")
    assert conditions.between_loads is not None


def test_threads_that_cannot_be_pinned_are_said(tmp_path):
    spec = QUICK.model_copy(update={"threads": (os.cpu_count() or 1) + 1})
    found = measured(tmp_path, mlp(), mlp(), spec=spec)
    assert not found.measured.conditions.pinned
    assert any(note.startswith("Threads were not pinned to cores while timing: ") for note in found.notes)
    found = measured(tmp_path, mlp(), mlp(), spec=QUICK.model_copy(update={"pin_threads": False}))
    assert not found.measured.conditions.pinned
    assert not any("pinned" in note for note in found.notes)


def test_tables_that_a_job_asks_for(tmp_path):
    spec = QUICK.model_copy(
        update={"batch_sizes": (1, 2), "sweep_seconds": 0.01, "profile_runs": 2, "energy_seconds": 0.01}
    )
    found = measured(tmp_path, cnn(), cnn(channels=(4, 16)), spec=spec)
    assert [point.batch_size for point in found.measured.sweep] == [1, 2]
    assert found.measured.original_profile.runs == found.measured.result_profile.runs == 2
    energy = [metric for metric in found.metrics if metric.name == "energy_per_call"]
    assert energy or any(note.startswith("Energy was not measured: ") for note in found.notes)
    assert {entry.name for entry in tmp_path.iterdir()} == {"original.onnx", "model.onnx"}


@pytest.mark.skipif("tensorrt" in providers.available(), reason="TensorRT is there")
def test_an_absent_provider_is_an_error_before_anything_is_measured(tmp_path):
    with pytest.raises(StepFailed, match="there are: cpu") as caught:
        measured(tmp_path, cnn(), cnn(), spec=QUICK.model_copy(update={"provider": "tensorrt"}))
    assert caught.value.code == "provider_missing"


@pytest.mark.skipif("cuda" in providers.available(), reason="CUDA is there")
def test_a_gpu_that_the_runtime_cannot_use_is_said(tmp_path):
    found = measured(tmp_path, cnn(), cnn(), device="cuda")
    assert found.measured.conditions.provider == "cpu"
    assert "The models were measured on the CPU: ONNX Runtime cannot use CUDA here." in found.notes


def test_a_loss_of_accuracy_is_said(tmp_path):
    """The original says class 0 of everything, and is right; the result says class 1."""
    np.savez(tmp_path / "evaluation.npz", x=np.zeros((20, 2), np.float32), labels=np.zeros(20, np.int64))

    def constant(*scores):
        return make_model(
            [helper.make_node("Add", ["x", "scores"], ["y"], "add")],
            [value("x", ["batch", 2])],
            [value("y", ["batch", 2])],
            {"scores": np.array([scores], np.float32)},
        )

    data = open_dataset(DataSource(tmp_path / "evaluation.npz"))
    notes = measured(tmp_path, constant(1, 0), constant(0, 1), data).notes
    assert "The result is less accurate than the original: -100.00 points [-100.00, -100.00]." in notes


def test_a_model_with_targets_is_judged_by_its_errors(tmp_path):
    """The original gives its input, which is the target; the result half of it."""

    def factor(value_):
        return make_model(
            [helper.make_node("Mul", ["x", "factor"], ["y"], "mul")],
            [value("x", ["batch", 2])],
            [value("y", ["batch", 2])],
            {"factor": np.array([value_], np.float32)},
        )

    x = np.random.default_rng(0).standard_normal((40, 2)).astype(np.float32)
    np.savez(tmp_path / "evaluation.npz", x=x, targets=x)
    data = open_dataset(DataSource(tmp_path / "evaluation.npz"))
    metrics, notes, _ = measured(tmp_path, factor(1.0), factor(0.5), data)
    by_name = {metric.name: metric for metric in metrics}
    assert by_name["mse"].original == 0
    assert by_name["mse"].result == pytest.approx((x**2).mean() / 4)
    assert any(note.startswith("The result is worse than the original in mse: ") for note in notes)
    assert not any("Accuracy" in note for note in notes)
    spec = QUICK.model_copy(update={"task": "classification"})
    notes = measured(tmp_path, factor(1.0), factor(0.5), data, spec).notes
    assert "Accuracy was not measured: the evaluation data has no labels." in notes


def test_half_precision_inputs_are_fed_as_such(tmp_path):
    half = mlp(dtype=np.float16)
    metrics = {metric.name: metric for metric in measured(tmp_path, mlp(), half).metrics}
    assert metrics["sqnr"].result > 40


def test_batches_have_the_size_in_use_where_it_matters(tmp_path, evaluation):
    """A result that takes its scale from the batch sees batches of the size in use, others larger ones."""
    seen = []

    class Recorder:
        summary = evaluation.summary

        def batches(self, batch_size, limit=None):
            seen.append(batch_size)
            return evaluation.batches(batch_size, limit)

    dynamic = make_model(
        [
            helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "scale", "zero"], "quantize"),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["y"], "dequantize"),
        ],
        [value("x", ["batch", 1, 8, 8])],
        [value("y", ["batch", 1, 8, 8])],
        {},
    )
    measured(tmp_path, dynamic, dynamic, Recorder(), QUICK.model_copy(update={"batch_size": 5}))
    assert seen[-1] == 5
    measured(tmp_path, cnn(), cnn(), Recorder())
    # 4 MiB of 64 floats would be more samples than are ever taken at once.
    assert seen[-1] == 256


def test_inputs_that_cannot_be_made_up_leave_the_sizes(tmp_path):
    model = make_model(
        [helper.make_node("Identity", ["x"], ["y"], "identity")],
        [value("x", ["batch"], TensorProto.STRING)],
        [value("y", ["batch"], TensorProto.STRING)],
        {},
    )
    metrics, notes, _ = measured(tmp_path, model, model)
    assert {metric.name for metric in metrics} <= {
        "file_bytes",
        "gzip_bytes",
        "parameters",
        "nonzero_parameters",
        "macs",
    }
    assert notes[-1].startswith("Only sizes were measured: ")


def reshape(rows):
    """A model that runs on `rows` samples of 4 numbers only."""
    return make_model(
        [helper.make_node("Reshape", ["x", "shape"], ["y"], "reshape")],
        [value("x", ["batch", 4])],
        [value("y", [rows * 2, 2])],
        {"shape": np.array([rows * 2, 2], np.int64)},
    )


def test_a_result_that_does_not_run_is_an_error(tmp_path):
    with pytest.raises(StepFailed, match=r"'model\.onnx' does not run: ") as caught:
        measured(tmp_path, reshape(1), reshape(3))
    assert caught.value.code == "benchmark_failed"


def test_an_original_that_does_not_run_on_made_up_inputs_leaves_the_sizes(tmp_path):
    metrics, notes, _ = measured(tmp_path, reshape(3), reshape(3))
    assert "latency_p50" not in {metric.name for metric in metrics}
    assert notes[-1].startswith("Only sizes were measured: on made-up inputs, 'original.onnx' does not run: ")


def test_can_be_cancelled(tmp_path):
    with pytest.raises(Cancelled):
        measured(tmp_path, cnn(), cnn(), is_cancelled=lambda: True)
    assert {entry.name for entry in tmp_path.iterdir()} == {"original.onnx", "model.onnx"}
