"""Accuracy, agreement and distances against scikit-learn and hand-computed numbers."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper
from sklearn.metrics import accuracy_score
from sklearn.metrics.pairwise import cosine_similarity

from compression.benchmarking.quality import Comparison, compare
from compression.context import Context
from compression.data import Batch
from compression.errors import Cancelled
from compression.runtime import Model
from tests.compression.models import make_model, save, value


def batch(count, labels=None):
    return Batch({"x": np.zeros((count, 1), np.float32)}, None if labels is None else np.array(labels))


def metrics(comparison):
    return {metric.name: metric for metric in [*comparison.judged(seed=0), *comparison.agreement()]}


def test_accuracy_and_agreement_over_several_batches():
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 4, 200)
    before = rng.standard_normal((200, 4)) + 2 * np.eye(4)[labels]
    after = before + rng.standard_normal((200, 4))
    comparison = Comparison()
    for begin in (0, 64, 128, 192):
        part = slice(begin, begin + 64)
        comparison.add([before[part]], [after[part]], batch(len(labels[part]), labels[part]))
    found = metrics(comparison)
    assert found["accuracy"].original == accuracy_score(labels, before.argmax(1))
    assert found["accuracy"].result == accuracy_score(labels, after.argmax(1))
    assert found["accuracy"].samples == 200
    low, high = found["accuracy"].interval
    assert low < found["accuracy"].result - found["accuracy"].original < high
    assert found["accuracy"].verdict.startswith("worse, -")
    agreement = found["top1_agreement"]
    assert agreement.original is None
    assert agreement.result == accuracy_score(before.argmax(1), after.argmax(1))
    assert agreement.interval[0] < agreement.result < agreement.interval[1]
    assert found["cosine_similarity"].result == pytest.approx(
        cosine_similarity(before.reshape(1, -1), after.reshape(1, -1))[0, 0]
    )
    assert found["sqnr"].result == pytest.approx(10 * np.log10((before**2).sum() / ((after - before) ** 2).sum()))


def test_hand_computed_distances():
    comparison = Comparison()
    comparison.add([np.array([[3.0, 4.0]])], [np.array([[3.0, 3.5]])], batch(1))
    found = metrics(comparison)
    # 23 / (5 * sqrt(21.25)) and 10 log10(25 / 0.25).
    assert found["cosine_similarity"].result == pytest.approx(0.99788, abs=1e-5)
    assert found["sqnr"].result == pytest.approx(20.0)
    assert found["top1_agreement"].result == 1.0


def test_equal_outputs_stay_finite():
    comparison = Comparison()
    comparison.add([np.ones((5, 3), np.float32)], [np.ones((5, 3), np.float32)], batch(5, [0, 0, 1, 2, 0]))
    found = metrics(comparison)
    assert found["sqnr"].result == 138.5
    assert found["cosine_similarity"].result == 1.0
    assert found["accuracy"].interval == (0.0, 0.0)
    assert found["accuracy"].verdict == "right and wrong on the same of 5 samples"


def test_outputs_of_zeros():
    comparison = Comparison()
    comparison.add([np.zeros((1, 3))], [np.ones((1, 3))], batch(1))
    found = metrics(comparison)
    assert found["cosine_similarity"].result == 0.0
    assert found["sqnr"].result == -138.5


def test_of_several_outputs_the_worst_counts():
    comparison = Comparison()
    comparison.add([np.ones((1, 2)), np.array([[1.0, 0]])], [np.ones((1, 2)), np.array([[0.0, 1]])], batch(1))
    found = metrics(comparison)
    assert found["cosine_similarity"].result == 0.0
    assert found["sqnr"].result == pytest.approx(10 * np.log10(1 / 2))


@pytest.mark.parametrize("shape", [(4,), (4, 1), (4, 3, 2), (1, 3)])
def test_only_scores_of_classes_are_classified(shape):
    comparison = Comparison()
    comparison.add([np.ones(shape)], [np.ones(shape)], batch(4, [0, 0, 0, 0]))
    assert set(metrics(comparison)) == {"cosine_similarity", "sqnr"}


def test_without_labels_there_is_no_accuracy():
    comparison = Comparison()
    comparison.add([np.eye(4)], [np.eye(4)], batch(4))
    assert set(metrics(comparison)) == {"top1_agreement", "cosine_similarity", "sqnr"}


def test_nan_in_the_result_is_said_and_not_averaged():
    comparison = Comparison()
    comparison.add([np.ones((2, 2))], [np.array([[1.0, np.nan], [1, 1]])], batch(2))
    assert set(metrics(comparison)) == {"top1_agreement"}
    assert "The result gives NaN" in comparison.notes()[0]


def test_nan_in_the_original_is_left_out():
    comparison = Comparison()
    comparison.add([np.array([[1.0, np.inf]])], [np.array([[1.0, 2]])], batch(1))
    comparison.add([np.array([[1.0, 2]])], [np.array([[1.0, 2]])], batch(1))
    assert metrics(comparison)["sqnr"].result == 138.5
    assert "The original gives NaN" in comparison.notes()[0]


@pytest.fixture
def scaled(tmp_path):
    """Models that multiply their input (2, 3) by 1 and by -1."""
    models = []
    for factor in (1, -1):
        model = make_model(
            [helper.make_node("Mul", ["x", "factor"], ["y"], "mul")],
            [value("x", [2, 3])],
            [value("y", [2, 3])],
            {"factor": np.array([factor], np.float32)},
        )
        models.append(Model(save(model, tmp_path / f"{factor}.onnx"), threads=1))
    return models


def test_models_with_a_fixed_batch_get_full_batches(scaled, tmp_path):
    samples = np.array([[1, 0, 0], [0, 2, 0], [0, 0, 3]], np.float32)
    batches = [Batch({"x": samples[:2]}, np.array([0, 1])), Batch({"x": samples[2:]}, np.array([2]))]
    comparison = compare(*scaled, batches, Context(tmp_path), pad_to=2)
    assert comparison.samples == comparison.classified == 3
    found = metrics(comparison)
    assert found["accuracy"].original == 1.0
    assert found["accuracy"].result == 0.0
    assert found["cosine_similarity"].result == -1.0
    # The difference is twice the signal: 10 log10(1 / 4).
    assert found["sqnr"].result == pytest.approx(-6.0206)


def test_can_be_cancelled_between_batches(scaled, tmp_path):
    context = Context(tmp_path, is_cancelled=lambda: True)
    with pytest.raises(Cancelled):
        compare(*scaled, [Batch({"x": np.zeros((2, 3), np.float32)}, None)], context)
