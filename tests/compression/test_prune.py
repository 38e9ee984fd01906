"""Pruning masks against sorting, and the step on small graphs."""

from __future__ import annotations

import doctest

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import helper

from compression.context import Context
from compression.errors import Cancelled, StepFailed
from compression.pruning import selection
from compression.pruning.step import prune
from compression.spec import Prune
from tests.compression import models


@pytest.fixture
def context(tmp_path):
    return Context(workdir=tmp_path)


def by_sorting(arrays, amount):
    """The same ranking, done the slow way: a stable sort of everything."""
    flat = np.abs(np.concatenate([array.reshape(-1) for array in arrays]))
    zeroed = np.zeros(flat.size, bool)
    zeroed[np.argsort(flat, kind="stable")[: round(amount * flat.size)]] = True
    ends = np.cumsum([array.size for array in arrays])[:-1]
    return [part.reshape(array.shape) for part, array in zip(np.split(zeroed, ends), arrays, strict=True)]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.99), st.integers(1, 6))
def test_smallest_equals_a_stable_sort_with_many_ties(seed, amount, levels):
    rng = np.random.default_rng(seed)
    arrays = [rng.integers(-levels, levels + 1, shape).astype(np.float32) for shape in ((3, 4), (7,), (2, 2, 5))]
    for mask, expected in zip(selection.smallest(arrays, amount), by_sorting(arrays, amount), strict=True):
        np.testing.assert_array_equal(mask, expected)


def test_smallest_of_an_8x6_layer():
    weight = np.arange(-24, 24, dtype=np.float32).reshape(8, 6)  # magnitudes 0, 1, 1, 2, 2, ... 23, 23, 24
    (mask,) = selection.smallest([weight], 0.25)  # 12 of 48: 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5 and the first 6
    assert sorted(weight[mask].tolist()) == [-6, -5, -4, -3, -2, -1, 0, 1, 2, 3, 4, 5]


def test_half_precision_is_ranked_by_value():
    weight = np.array([0.1, -0.3, 0.2, 0.05], np.float16)
    assert selection.smallest([weight], 0.5)[0].tolist() == [True, False, False, True]


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_n_of_m_keeps_the_largest_of_every_group(axis):
    weight = np.random.default_rng(1).standard_normal((8, 12, 4)).astype(np.float32)
    mask = selection.n_of_m(weight, 2, 4, axis)
    rows = np.moveaxis(weight, axis, -1).reshape(-1, 4)
    kept = ~np.moveaxis(mask, axis, -1).reshape(-1, 4)
    for row, keep in zip(rows, kept, strict=True):
        assert set(np.flatnonzero(keep)) == set(np.argsort(np.abs(row))[2:])


def test_n_of_m_keeps_the_earlier_of_equals():
    assert selection.n_of_m(np.ones((1, 4), np.float32), 1, 2, 1).tolist() == [[False, True, False, True]]


def test_by_amount_within_each_layer(context):
    model = models.cnn()
    pruned, details = prune(model, Prune(amount=0.5), context)
    before, after = models.weights_of(model), models.weights_of(pruned)
    for name in ("conv1.weight", "conv2.weight", "fc.weight"):
        expected = np.where(by_sorting([before[name]], 0.5)[0], 0, before[name])
        np.testing.assert_array_equal(after[name], expected)
    for name in ("conv1.bias", "conv2.bias", "fc.bias"):
        np.testing.assert_array_equal(after[name], before[name])
    assert details["sparsity"] == pytest.approx(0.5)
    assert [entry["name"] for entry in details["weights"]] == ["conv1.weight", "conv2.weight", "fc.weight"]
    np.testing.assert_array_equal(models.weights_of(model)["fc.weight"], before["fc.weight"])


def test_by_amount_over_all_layers(context):
    model = models.cnn()
    pruned, details = prune(model, Prune(amount=0.7, scope="global"), context)
    before, after = models.weights_of(model), models.weights_of(pruned)
    names = ["conv1.weight", "conv2.weight", "fc.weight"]
    for name, mask in zip(names, by_sorting([before[name] for name in names], 0.7), strict=True):
        np.testing.assert_array_equal(after[name] == 0, mask)
    total = sum(before[name].size for name in names)
    assert details["sparsity"] == round(0.7 * total) / total


def test_zeros_that_are_there_already_count(context):
    once, _ = prune(models.cnn(), Prune(amount=0.5), context)
    again, details = prune(once, Prune(amount=0.5), context)
    assert again.SerializeToString() == once.SerializeToString()
    assert all(entry["sparsity_before"] == entry["sparsity"] == 0.5 for entry in details["weights"])


def test_by_threshold(context):
    model = models.mlp()
    pruned, details = prune(model, Prune(threshold=0.05), context)
    before, after = models.weights_of(model)["w1"], models.weights_of(pruned)["w1"]
    np.testing.assert_array_equal(after, np.where(np.abs(before) < 0.05, 0, before))
    assert details["weights"][0]["sparsity"] == pytest.approx(float(np.mean(np.abs(before) < 0.05)))


def test_pattern_lies_along_the_input_axis_and_skips_what_it_does_not_divide(context):
    model = models.cnn()  # input axes: conv1 has 1 channel, conv2 8, fc 256
    pruned, details = prune(model, Prune(pattern="2:4"), context)
    after = models.weights_of(pruned)
    conv2 = np.moveaxis(after["conv2.weight"], 1, -1).reshape(-1, 4)
    assert (np.count_nonzero(conv2, axis=1) == 2).all()
    assert (np.count_nonzero(after["fc.weight"].reshape(-1, 4), axis=1) == 2).all()
    np.testing.assert_array_equal(after["conv1.weight"], models.weights_of(model)["conv1.weight"])
    assert details["weights"][0]["skipped"] == "its input axis has 1 entries, which 4 does not divide"
    assert details["weights"][0]["sparsity"] == 0


def test_pattern_of_a_matmul_lies_along_its_rows(context):
    pruned, _ = prune(models.mlp(), Prune(pattern="1:4", include=("w1",)), context)
    columns = models.weights_of(pruned)["w1"].T.reshape(-1, 4)  # stored (in, out)
    assert (np.count_nonzero(columns, axis=1) == 1).all()


@pytest.mark.parametrize("dtype", [np.float16, np.float64])
def test_the_element_type_stays(context, dtype):
    model = models.mlp(dtype=dtype)
    pruned, _ = prune(model, Prune(amount=0.5), context)
    assert models.weights_of(pruned)["w1"].dtype == dtype
    assert np.count_nonzero(models.weights_of(pruned)["w1"]) == 64 * 128 / 2


def test_bfloat16_weights(context):
    import ml_dtypes

    values = np.array([[1, -2], [3, 0.5]], ml_dtypes.bfloat16)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "mm")]
    kind = onnx.TensorProto.BFLOAT16
    model = models.make_model(
        nodes, [models.value("x", ["b", 2], kind)], [models.value("y", ["b", 2], kind)], {"w": values}
    )
    pruned, _ = prune(model, Prune(amount=0.5), context)
    after = models.weights_of(pruned)["w"]
    assert after.dtype == ml_dtypes.bfloat16
    assert after.astype(np.float32).tolist() == [[0, -2], [3, 0]]


def test_embeddings_are_left_alone(context):
    model = models.embedding()
    pruned, details = prune(model, Prune(amount=0.5), context)
    assert [entry["name"] for entry in details["weights"]] == ["head"]
    np.testing.assert_array_equal(models.weights_of(pruned)["table"], models.weights_of(model)["table"])


def test_non_finite_weights_are_named(context):
    model = models.mlp()
    values = models.weights_of(model)["w2"].copy()
    values[3, 1] = np.nan
    model.graph.initializer[2].CopyFrom(onnx.numpy_helper.from_array(values, "w2"))
    with pytest.raises(StepFailed, match="'w2' holds NaN") as caught:
        prune(model, Prune(amount=0.5), context)
    assert caught.value.code == "non_finite_weights"


def test_stops_when_asked(tmp_path):
    with pytest.raises(Cancelled):
        prune(models.cnn(), Prune(amount=0.5), Context(workdir=tmp_path, is_cancelled=lambda: True))


def test_examples():
    found = doctest.testmod(selection)
    assert (found.failed, found.attempted > 0) == (0, True)
