"""The step that only trains, by itself and in a whole run."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import onnx
import pytest

from compression import dispatch
from compression.context import Context
from compression.data import DataSource
from compression.errors import DataRejected, StepFailed
from compression.pipeline import run
from compression.pruning.step import prune
from compression.spec import BenchmarkSpec, Cluster, Finetune, PipelineSpec, Prune, QuantizeStatic
from compression.training.spec import Augmentation, Training
from compression.training.step import finetune
from tests.compression import models
from tests.compression.training.loops import flat_digits, material

EXAMPLE = Path(__file__).parents[3] / "examples" / "digits"
TRAINING = Training(epochs=2, batch_size=50, learning_rate=0.01)


@pytest.fixture
def context(tmp_path):
    return Context(workdir=tmp_path)


def small():
    return models.mlp(hidden=16)


def tuned(tmp_path, model, arrays=None, *, seed=0, **fields):
    data = material(tmp_path / "data", model, arrays or flat_digits(), seed=seed)
    return finetune(model, Finetune(**({"training": TRAINING} | fields)), Context(workdir=tmp_path), data)


def changed(before, after):
    ours, theirs = models.weights_of(before), models.weights_of(after)
    return {name for name in ours if not np.array_equal(ours[name], theirs[name])}


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, {"w1", "b1", "w2", "b2"}),
        ({"include": ("w2",)}, {"w2", "b1", "b2"}),
        ({"exclude": ("w2",)}, {"w1", "b1", "b2"}),
        ({"include": ("matmul*",), "exclude": ("matmul1",)}, {"w2", "b1", "b2"}),
    ],
)
def test_what_is_not_selected_is_frozen_but_vectors(tmp_path, fields, expected):
    found, details = tuned(tmp_path, small(), **fields)
    assert changed(small(), found) == expected
    assert len(details["training"]["epochs"]) == 2


def test_training_learns(tmp_path):
    _, details = tuned(tmp_path, small(), training=Training(epochs=30, learning_rate=0.01, batch_size=32))
    losses = [epoch["loss"] for epoch in details["training"]["epochs"]]
    assert losses[-1] < losses[0] / 4
    assert details["training"]["kept_epoch"] > 10


@pytest.mark.parametrize("keep_zeros", [True, False])
def test_zeros_stay_unless_they_need_not(tmp_path, context, keep_zeros):
    pruned, _ = prune(small(), Prune(amount=0.8), context)
    found, _ = tuned(tmp_path, pruned, keep_zeros=keep_zeros)
    before, after = (models.weights_of(model)["w1"] == 0 for model in (pruned, found))
    assert before.mean() == pytest.approx(0.8, abs=1e-3)
    assert np.array_equal(before, after) is keep_zeros
    assert keep_zeros or after.mean() < 0.5


def test_the_seed_decides_the_bytes(tmp_path):
    training = Training(epochs=1, batch_size=50, augmentation=Augmentation(noise=0.1))
    first, again, other = (
        tuned(tmp_path, small(), seed=seed, training=training)[0].SerializeToString() for seed in (1, 1, 2)
    )
    assert first == again
    assert first != other


def test_a_regression_on_two_inputs(tmp_path):
    """Targets that other weights of the same form give can be learned to the last digits."""
    rng = np.random.default_rng(0)
    arrays = {
        "a": rng.standard_normal((200, 4)).astype(np.float32),
        "b": rng.standard_normal((200, 6)).astype(np.float32),
    }
    weights = models.weights_of(models.two_inputs(seed=7))
    arrays["targets"] = arrays["a"] @ weights["wa"] + arrays["b"] @ weights["wb"]
    found, details = tuned(
        tmp_path, models.two_inputs(), arrays, training=Training(epochs=30, batch_size=20, learning_rate=0.05)
    )
    np.testing.assert_allclose(models.weights_of(found)["wa"], weights["wa"], atol=1e-3)
    np.testing.assert_allclose(models.weights_of(found)["wb"], weights["wb"], atol=1e-3)
    assert details["training"]["epochs"][-1]["validation_accuracy"] is None


def test_without_labels_a_teacher_is_needed(tmp_path):
    arrays = {"x": flat_digits()["x"]}
    with pytest.raises(DataRejected, match=r"training\.teacher") as caught:
        tuned(tmp_path, small(), arrays)
    assert caught.value.code == "labels_missing"
    model, _ = prune(small(), Prune(amount=0.5), Context(workdir=tmp_path))
    data = material(tmp_path / "data", small(), arrays)
    spec = Finetune(training=Training(epochs=3, learning_rate=0.01, teacher="original"))
    _, details = finetune(model, spec, Context(workdir=tmp_path), data)
    losses = [epoch["validation_loss"] for epoch in details["training"]["epochs"]]
    assert losses == sorted(losses, reverse=True)


def test_a_model_that_fixes_its_batch(tmp_path):
    """Seventy samples are four batches of sixteen, one of which validates; ten are taken for one batch."""
    pictures, labels = models.digits()
    arrays, model = {"x": pictures[:70], "labels": labels[:70]}, models.cnn(batch=16)
    found, details = tuned(tmp_path, model, arrays, training=Training(epochs=1, teacher="original"))
    assert "conv1.weight" in changed(model, found)
    assert details["training"]["epochs"][0]["validation_accuracy"] is not None
    with pytest.raises(DataRejected) as caught:
        tuned(tmp_path, model, arrays, training=Training(epochs=1, samples=10))
    assert caught.value.code == "dataset_too_small"
    tuned(tmp_path, model, arrays, training=Training(epochs=1, samples=10, validation_share=0))


BENCHMARK = BenchmarkSpec(max_seconds=0.05, min_rounds=5, max_rounds=5, threads=1)


def whole(tmp_path, steps, *, data=(), **options):
    folder = tmp_path / "work"
    folder.mkdir()
    sources = {role: DataSource(path) for role, path in dict(data).items()}
    spec = PipelineSpec(steps=steps, benchmark=BENCHMARK)
    return run(EXAMPLE / "digits-cnn.onnx", spec, Context(workdir=folder, threads=1, **options), sources)


def test_prune_finetune_quantize(tmp_path):
    """On the real digits: trained on what the example was trained on, judged on the held-out quarter."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    pictures, _, labels, _ = train_test_split(
        (digits.images[:, None] / 16).astype(np.float32),
        digits.target.astype(np.int64),
        test_size=0.25,
        random_state=0,
        stratify=digits.target,
    )
    np.savez(tmp_path / "training.npz", image=pictures[:384], labels=labels[:384])
    steps = [
        Prune(amount=0.6),
        Finetune(training=Training(epochs=2, batch_size=32, teacher="original")),
        QuantizeStatic(),
    ]
    data = {
        "training": tmp_path / "training.npz",
        "calibration": EXAMPLE / "calibration.npz",
        "evaluation": EXAMPLE / "evaluation.npz",
    }
    result = whole(tmp_path, steps, data=data)
    assert [step.type for step in result.steps] == ["prune", "finetune", "quantize"]
    report = result.steps[1].details["training"]
    assert [epoch["epoch"] for epoch in report["epochs"]] == [1, 2]
    assert report["epochs"][report["kept_epoch"] - 1]["validation_accuracy"] > 0.95
    accuracy = next(metric for metric in result.metrics if metric.name == "accuracy")
    assert accuracy.original > 0.98
    assert accuracy.result > 0.95
    written = onnx.load(tmp_path / "work" / "out" / "model.onnx")
    stored = [values for values in models.weights_of(written).values() if values.dtype == np.int8 and values.ndim > 1]
    zeros = sum(int((values == 0).sum()) for values in stored)
    assert zeros / sum(values.size for values in stored) > 0.599


@pytest.mark.parametrize("step", [Finetune(), Prune(amount=0.5, training=Training()), Cluster(training=Training())])
def test_a_run_without_training_data(tmp_path, step):
    with pytest.raises(
        DataRejected, match=f"'{step.type}' step learns from samples: give a training dataset"
    ) as caught:
        whole(tmp_path, [step])
    assert caught.value.code == "training_data_missing"


@pytest.mark.parametrize("step", [Finetune(), Prune(amount=0.5, training=Training()), Cluster(training=Training())])
def test_a_worker_without_torch(tmp_path, context, monkeypatch, step):
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *rest: None if name == "torch" else find(name, *rest))
    prepared = dispatch.Material({}, small, 0, "")
    with pytest.raises(StepFailed, match="install") as caught:
        dispatch.apply(step, small(), context, prepared)
    assert caught.value.code == "torch_missing"
