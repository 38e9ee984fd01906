"""Whole runs: what they leave, what they refuse, what they reuse."""

from __future__ import annotations

import errno
import hashlib
import json
import shutil

import numpy as np
import onnx
import onnxruntime
import pytest
import safetensors.numpy

from compression import dispatch, pipeline, publishing
from compression.clustering.step import cluster
from compression.context import Context
from compression.data import DataSource
from compression.errors import Cancelled, CompressionError, DataRejected, StepFailed
from compression.pipeline import run
from compression.pruning.step import prune
from compression.result import PipelineResult
from compression.spec import BenchmarkSpec, Cluster, PipelineSpec, Prune, PruneChannels, QuantizeStatic
from tests.compression import models

BENCHMARK = BenchmarkSpec(max_seconds=0.05, min_rounds=5, max_rounds=5, threads=1)


def spec(*steps, **options):
    return PipelineSpec(steps=steps, benchmark=BENCHMARK, **options)


@pytest.fixture
def model(tmp_path):
    return models.save(models.cnn(), tmp_path / "model.onnx")


@pytest.fixture
def digits(tmp_path):
    pictures, labels = models.digits()
    np.savez(tmp_path / "digits.npz", pictures=pictures[:200], labels=labels[:200])
    return DataSource(tmp_path / "digits.npz")


class Recorder:
    def __init__(self):
        self.calls = []

    def __call__(self, phase, fraction, message=""):
        self.calls.append((phase, fraction))

    @property
    def phases(self):
        return list(dict.fromkeys(phase for phase, _ in self.calls))


class MemoryCache:
    def __init__(self, folder):
        self._folder = folder
        self.kept = {}

    def get(self, key):
        return self.kept.get(key)

    def put(self, key, folder):
        self.kept[key] = self._folder / key
        shutil.copytree(folder, self.kept[key])


def context(tmp_path, name="work", **options):
    folder = tmp_path / name
    folder.mkdir()
    return Context(workdir=folder, threads=1, **options)


def metric(result, name):
    return next(metric for metric in result.metrics if metric.name == name)


def test_prune_and_cluster(tmp_path, model, digits):
    progress = Recorder()
    surroundings = context(tmp_path, progress=progress)
    steps = Prune(amount=0.6), Cluster(clusters=16)
    result = run(model, spec(*steps), surroundings, {"evaluation": digits})
    out = surroundings.workdir / "out"

    pruned, _ = prune(models.cnn(), steps[0], Context(workdir=tmp_path))
    expected, _ = cluster(pruned, steps[1], Context(workdir=tmp_path), 0)
    written = onnx.load(out / "model.onnx")
    for name, values in models.weights_of(expected).items():
        np.testing.assert_array_equal(models.weights_of(written)[name], values)
    saved = safetensors.numpy.load_file(out / "weights.safetensors")
    assert saved.keys() == models.weights_of(expected).keys()
    np.testing.assert_array_equal(saved["fc.weight"], models.weights_of(expected)["fc.weight"])

    assert [step.type for step in result.steps] == ["prune", "cluster"]
    assert not any(step.cached for step in result.steps)
    weights = 72 + 1152 + 2560
    assert result.compressed.nonzero_parameters == 34 + sum(size - round(0.6 * size) for size in (72, 1152, 2560))
    assert result.model.parameters == result.compressed.parameters == weights + 34
    assert metric(result, "nonzero_parameters").result == result.compressed.nonzero_parameters
    assert metric(result, "file_bytes").original == model.stat().st_size

    x, labels = models.digits()
    outputs = [
        onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"]).run(None, {"x": x[:200]})[0]
        for path in (model, out / "model.onnx")
    ]
    accuracy = metric(result, "accuracy")
    assert accuracy.original == pytest.approx(np.mean(outputs[0].argmax(1) == labels[:200]))
    assert accuracy.result == pytest.approx(np.mean(outputs[1].argmax(1) == labels[:200]))

    assert progress.phases == ["loading", "pruning", "clustering", "verifying", "benchmarking", "reporting"]
    fractions = [fraction for _, fraction in progress.calls]
    assert fractions == sorted(fractions)
    assert (fractions[0], fractions[-1]) == (0, 1)


def test_files_are_those_that_the_result_names(tmp_path, model):
    surroundings = context(tmp_path)
    result = run(model, spec(Prune(amount=0.5)), surroundings)
    out = surroundings.workdir / "out"
    names = {"model.onnx", "weights.safetensors", "report.json", "report.html", "manifest.json"}
    assert {artifact.name for artifact in result.artifacts} == names == {path.name for path in out.iterdir()}
    for artifact in result.artifacts:
        data = (out / artifact.name).read_bytes()
        assert (artifact.sha256, artifact.size) == (hashlib.sha256(data).hexdigest(), len(data))
    report = PipelineResult.model_validate_json((out / "report.json").read_bytes())
    assert (report.metrics, report.steps, report.notes) == (result.metrics, result.steps, result.notes)
    manifest = json.loads((out / "manifest.json").read_bytes())
    assert manifest["lineage"]["original"]["sha256"] == hashlib.sha256(model.read_bytes()).hexdigest()
    assert {artifact["name"] for artifact in manifest["artifacts"]} == names - {"manifest.json"}
    assert any("Accuracy was not measured" in note for note in result.notes)
    assert any("made-up inputs" in note for note in result.notes)


def test_prune_and_static_quantization(tmp_path, model, digits):
    surroundings = context(tmp_path)
    data = {"calibration": digits, "evaluation": digits}
    result = run(model, spec(Prune(amount=0.5), QuantizeStatic(calibration_samples=64)), surroundings, data)
    assert result.compressed.quantized
    assert not result.model.quantized
    assert result.compressed.parameter_bytes < 0.5 * result.model.parameter_bytes
    assert metric(result, "top1_agreement").result > 0.8
    assert set(result.data) == {"calibration", "evaluation"}


def test_external_data_is_joined(tmp_path, digits):
    model = models.save_external(models.cnn(), tmp_path / "model.onnx")
    result = run(model, spec(Prune(amount=0.5)), context(tmp_path), {"evaluation": digits})
    assert result.model.external_data_bytes == (tmp_path / "weights.bin").stat().st_size
    assert result.compressed.external_data_bytes == 0


def test_an_original_beyond_one_file(tmp_path, monkeypatch):
    """With a smaller limit in the place of protobuf's 2 GiB: the original stays in two files, the result fits one."""
    monkeypatch.setattr("compression.publishing.LARGEST_MESSAGE", 12_000)
    original = models.save_external(models.cnn(), tmp_path / "model.onnx")
    result = run(original, spec(PruneChannels(amount=0.5)), context(tmp_path))
    assert metric(result, "file_bytes").original > 15_000
    assert metric(result, "gzip_bytes").original > 10_000
    assert metric(result, "file_bytes").result < 12_000
    assert metric(result, "latency_p50").ratio > 0
    kept = run(original, spec(Prune(amount=0.5)), context(tmp_path, "kept"))
    assert [file.name for file in kept.artifacts][:2] == ["model.onnx", "model.onnx.data"]
    assert metric(kept, "file_bytes").result == sum(file.size for file in kept.artifacts[:2])


def test_a_model_in_two_files_is_the_same_model(tmp_path, monkeypatch):
    monkeypatch.setattr("compression.publishing.LARGEST_MESSAGE", 5000)
    model = models.cnn()
    model.metadata_props.add(key="author", value="tests")
    model.graph.doc_string = "two convolutions"
    publishing.write_any_size(tmp_path / "m.onnx", model)
    assert (tmp_path / "m.onnx.data").stat().st_size == 4 * (16 * 8 * 9 + 10 * 256)
    joined = onnx.load(tmp_path / "m.onnx")
    for tensor in joined.graph.initializer:
        tensor.ClearField("data_location")
    assert joined == model
    onnx.checker.check_model(str(tmp_path / "m.onnx"))
    publishing.write_any_size(tmp_path / "small.onnx", models.mlp(features=4, hidden=4))
    assert not (tmp_path / "small.onnx.data").exists()


@pytest.mark.parametrize("format_", ["fixed", "embedding", "two inputs", "half"])
def test_other_models(tmp_path, format_):
    made = {
        "fixed": lambda: models.cnn(batch=3),
        "embedding": models.embedding,
        "two inputs": models.two_inputs,
        "half": lambda: models.mlp(dtype=np.float16),
    }[format_]()
    result = run(models.save(made, tmp_path / "m.onnx"), spec(Prune(amount=0.5), Cluster()), context(tmp_path))
    assert result.compressed.nonzero_parameters < result.model.nonzero_parameters
    assert metric(result, "cosine_similarity").result > 0.5


def test_finished_steps_are_reused(tmp_path, model, digits):
    cache = MemoryCache(tmp_path / "cache")
    data = {"evaluation": digits}
    first = run(model, spec(Prune(amount=0.5), Cluster(clusters=8)), context(tmp_path, "1", step_cache=cache), data)
    assert len(cache.kept) == 2
    again = run(model, spec(Prune(amount=0.5), Cluster(clusters=8)), context(tmp_path, "2", step_cache=cache), data)
    assert [step.cached for step in again.steps] == [True, True]
    assert [step.details for step in again.steps] == [step.details for step in first.steps]
    assert (tmp_path / "1/out/model.onnx").read_bytes() == (tmp_path / "2/out/model.onnx").read_bytes()
    prefix = run(model, spec(Prune(amount=0.5), Cluster(clusters=4)), context(tmp_path, "3", step_cache=cache), data)
    assert [step.cached for step in prefix.steps] == [True, False]
    other = run(
        model, spec(Prune(amount=0.5), Cluster(clusters=8), seed=1), context(tmp_path, "4", step_cache=cache), data
    )
    assert [step.cached for step in other.steps] == [False, False]


@pytest.mark.parametrize("damage", ["model.onnx", "details.json"])
def test_a_damaged_cache_entry_is_computed_again(tmp_path, model, damage):
    cache = MemoryCache(tmp_path / "cache")
    run(model, spec(Prune(amount=0.5)), context(tmp_path, "1", step_cache=cache))
    for folder in cache.kept.values():
        (folder / damage).write_bytes(b"\xff\xff")
    cache.put = lambda key, folder: None
    result = run(model, spec(Prune(amount=0.5)), context(tmp_path, "2", step_cache=cache))
    assert not result.steps[0].cached
    assert (tmp_path / "1/out/model.onnx").read_bytes() == (tmp_path / "2/out/model.onnx").read_bytes()


def refused(error, code, *arguments):
    with pytest.raises(error) as caught:
        run(*arguments)
    assert caught.value.code == code
    return caught.value


def test_static_quantization_without_data(tmp_path, model, digits):
    error = refused(
        DataRejected,
        "calibration_data_missing",
        model,
        spec(QuantizeStatic()),
        context(tmp_path),
        {"evaluation": digits},
    )
    assert "calibration" in error.message


def test_an_unknown_role(tmp_path, model, digits):
    refused(DataRejected, "unknown_role", model, spec(Cluster()), context(tmp_path), {"validation": digits})


def test_data_of_another_shape(tmp_path, model):
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 1, 9, 9)))
    data = {"evaluation": DataSource(tmp_path / "x.npz")}
    error = refused(DataRejected, "dataset_mismatch", model, spec(Cluster()), context(tmp_path), data)
    assert "float64" in error.message
    assert "axis 2" in error.message
    assert "axis 3" in error.message


def test_labels_out_of_range(tmp_path, model):
    np.savez(tmp_path / "x.npz", x=np.zeros((4, 1, 8, 8), np.float32), labels=np.array([0, 1, 2, 10]))
    data = {"evaluation": DataSource(tmp_path / "x.npz")}
    refused(DataRejected, "labels_out_of_range", model, spec(Cluster()), context(tmp_path), data)


def test_values_that_are_not_finite(tmp_path, model):
    x = np.zeros((4, 1, 8, 8), np.float32)
    x[2, 0, 0, 0] = np.inf
    np.savez(tmp_path / "x.npz", x=x)
    data = {"evaluation": DataSource(tmp_path / "x.npz")}
    refused(DataRejected, "non_finite_values", model, spec(Cluster()), context(tmp_path), data)


def test_an_unknown_layer(tmp_path, model):
    error = refused(StepFailed, "unknown_name", model, spec(Prune(amount=0.5, include=("fc1",))), context(tmp_path))
    assert "did you mean 'fc'" in error.message


def test_skipped_weights_are_noted(tmp_path, model):
    result = run(model, spec(Prune(pattern="2:4")), context(tmp_path))
    assert any("left a weight as it was, 'conv1.weight': its input axis has 1 entries" in note for note in result.notes)


@pytest.mark.parametrize("phase", ["loading", "pruning", "verifying", "benchmarking", "reporting"])
def test_cancelled_in_any_phase(tmp_path, model, phase):
    seen = []
    surroundings = context(
        tmp_path,
        progress=lambda phase, fraction, message="": seen.append(phase),
        is_cancelled=lambda: phase in seen,
    )
    with pytest.raises(Cancelled):
        run(model, spec(Prune(amount=0.5)), surroundings)
    assert not (surroundings.workdir / "out" / "manifest.json").exists() or phase == "reporting"


def test_a_full_disk_is_a_clear_error(tmp_path, model, monkeypatch):
    def full(path, model):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pipeline.publishing, "write_model", full)
    error = refused(CompressionError, "disk_full", model, spec(Prune(amount=0.5)), context(tmp_path))
    assert error.retryable


def test_out_of_memory_is_a_clear_error(tmp_path, model, monkeypatch):
    def exhausted(*arguments):
        raise MemoryError

    monkeypatch.setattr(dispatch, "prune", exhausted)
    assert refused(CompressionError, "out_of_memory", model, spec(Prune(amount=0.5)), context(tmp_path)).retryable
