"""A network of two layers whose pruned form is worked out by hand."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from compression.pruning.channels.importance import distances, lamp, norms
from tests.compression import models
from tests.compression.channel_pruning.oracle import prune, run

# Four hidden neurons; by rows the l2 norms of what leads in are 5, 1, 13, 2, of what leads out 1, 2, 1, 5.
IN = np.array([[3, 4], [1, 0], [5, 12], [0, -2]], np.float32)
BIAS = np.array([10, 20, 30, 40], np.float32)
OUT = np.array([[1, 0, 1, 3], [0, 2, 0, 4]], np.float32)


@pytest.fixture
def network():
    nodes = [
        helper.make_node("Gemm", ["x", "in", "bias"], ["h"], "first", transB=1),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "out"], ["y"], "second", transB=1),
    ]
    value = models.value
    return models.make_model(
        nodes, [value("x", ["batch", 2])], [value("y", ["batch", 2])], {"in": IN, "bias": BIAS, "out": OUT}
    )


# Divided by the means 5.25 and 2.25, then averaged: 0.698, 0.540, 1.460, 1.302.
@pytest.mark.parametrize(("amount", "kept"), [(0.25, [0, 2, 3]), (0.5, [2, 3]), (0.75, [2])])
def test_the_least_important_neurons_go_with_all_their_connections(network, tmp_path, amount, kept):
    pruned, details = prune(network, tmp_path, amount=amount)
    weights = models.weights_of(pruned)
    np.testing.assert_array_equal(weights["in"], IN[kept])
    np.testing.assert_array_equal(weights["bias"], BIAS[kept])
    np.testing.assert_array_equal(weights["out"], OUT[:, kept])
    x = np.array([[1, 2], [-3, 1]], np.float32)
    expected = np.maximum(x @ IN[kept].T + BIAS[kept], 0) @ OUT[:, kept].T
    np.testing.assert_allclose(run(pruned, {"x": x})[0], expected, rtol=1e-6)
    assert details == {
        "parameters_before": 20,
        "parameters": 5 * len(kept),
        "macs_before": 16,
        "macs": 4 * len(kept),
        "groups": [{"layers": ["first"], "channels_before": 4, "channels": len(kept)}],
    }


# By the l1 norms 7, 1, 17, 2 (mean 6.75) and 1, 2, 1, 7 (mean 2.75): 0.70, 0.44, 1.44, 1.42.
# By distance to the others, in and out: neuron 0 lies in the middle of what leads in.
@pytest.mark.parametrize(("importance", "gone"), [("l1", 1), ("l2", 1), ("lamp", 1), ("bn_scale", 1)])
def test_criteria(network, tmp_path, importance, gone):
    pruned, _ = prune(network, tmp_path, amount=0.25, importance=importance)
    np.testing.assert_array_equal(models.weights_of(pruned)["bias"], np.delete(BIAS, gone))


def test_the_scale_of_the_norm_layer_decides(tmp_path):
    weights = {
        "w": np.ones((4, 1, 1, 1), np.float32),
        "scale": np.array([3, -0.1, 2, 0.5], np.float32),
        "shift": np.arange(4, dtype=np.float32),
        "mean": np.zeros(4, np.float32),
        "var": np.ones(4, np.float32),
        "v": np.array([[[[1]], [[100]], [[1]], [[1]]]], np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["b"], "norm"),
        helper.make_node("Conv", ["b", "v"], ["y"], "last"),
    ]
    value = models.value
    model = models.make_model(nodes, [value("x", [1, 1, 2, 2])], [value("y", [1, 1, 2, 2])], weights)
    pruned, _ = prune(model, tmp_path, amount=0.5, importance="bn_scale")
    assert models.weights_of(pruned)["scale"].tolist() == [3, 2]
    pruned, _ = prune(model, tmp_path, amount=0.5, importance="l2")
    assert 100 in models.weights_of(pruned)["v"]


def test_chance_follows_the_seed(network, tmp_path):
    def kept(seed):
        pruned, _ = prune(network, tmp_path, amount=0.5, importance="random", seed=seed)
        return models.weights_of(pruned)["bias"].tolist()

    assert kept(3) == kept(3)
    assert len({tuple(kept(seed)) for seed in range(8)}) > 1


def test_norms_distances_and_shares_of_the_layer():
    rows = np.array([[3.0, -4.0], [0.0, 0.0], [6.0, 8.0]])
    assert norms(rows, 1).tolist() == [7, 0, 14]
    assert norms(rows, 2).tolist() == [5, 0, 10]
    # |a - b| = 5, |b - c| = 10, |a - c| = sqrt(9 + 144)
    apart = np.sqrt(153)
    np.testing.assert_allclose(distances(rows), [5 + apart, 15, 10 + apart])
    np.testing.assert_allclose(lamp(np.array([5.0, 0.0, 10.0])), [25 / 125, 0, 1])
