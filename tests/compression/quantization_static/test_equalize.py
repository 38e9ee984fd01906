"""Rescaled channels: the same outputs to the last bit, and ranges as the papers' formulas give them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from compression.context import Context
from compression.graph.weights import find_weights
from compression.quantization import static
from compression.quantization.integer.equalize import (
    Equalizer,
    cross_layer_factors,
    links,
    power_of_two,
    smoothing_factors,
)
from compression.quantization.integer.plan import examine
from compression.spec import QuantizeStatic
from tests.compression.models import make_model, value, weight
from tests.compression.quantization_aware.networks import uneven_digits
from tests.compression.quantizing import DIGITS, dataset, digits_calibration, digits_model, outputs, sqnr, stored

SIZES = 2.0 ** np.array([-3, 2, 0, 4, -1, 0, 1, -2])


def anatomy(model):
    return examine(model, find_weights(model), ())


def convolutions(*between, second=None, groups=1):
    """Conv, what is given, Conv; channels of the first one's output differ by powers of two."""
    rng = np.random.default_rng(0)
    first = weight(rng, 8, 3, 3, 3) * SIZES.reshape(-1, 1, 1, 1)
    weights = {
        "w1": first.astype(np.float32),
        "b1": weight(rng, 8),
        "w2": weight(rng, 8, 8 // groups, 1, 1) if second is None else second,
        "zero": np.array(0, np.float32),
        "six": np.array(6, np.float32),
    }
    nodes = [helper.make_node("Conv", ["x", "w1", "b1"], ["v0"], "first", pads=[1, 1, 1, 1])]
    for index, (operator, extra, settings) in enumerate(between):
        nodes.append(
            helper.make_node(operator, [f"v{index}", *extra], [f"v{index + 1}"], f"between{index}", **settings)
        )
    last = f"v{len(between)}"
    if second is None:
        nodes.append(helper.make_node("Conv", [last, "w2"], ["y"], "second", group=groups))
        shape = ["n", 8, None, None]
    else:
        nodes.append(helper.make_node("Gemm", [last, "w2"], ["y"], "second"))
        shape = ["n", second.shape[1]]
    return make_model(nodes, [value("x", ["n", 3, 8, 8])], [value("y", shape)], weights)


RELU = ("Relu", (), {})
POOL = ("MaxPool", (), {"kernel_shape": [2, 2], "strides": [2, 2]})
FLATTEN = ("Flatten", (), {})


def test_factors_by_hand():
    # Over their median of 2: 1/4, 1, 1, 8 (16.97 is nearer to 16 than to 32 in the logarithm), and what is no number.
    assert power_of_two(np.array([0.5, 2.0, 2.0, 16.97, 0.0, np.inf])).tolist() == [0.25, 1, 1, 8, 1, 1]
    # sqrt(r1 / r2): 1, 4, 1/2.
    rows, inputs = np.array([2.0, 32.0, 1.0]), np.array([2.0, 2.0, 4.0])
    assert cross_layer_factors(rows, inputs).tolist() == [1, 4, 0.5]
    # sqrt(x / w): 1, 4, 16 over the median of 4.
    assert smoothing_factors(np.array([1.0, 16.0, 64.0]), np.array([1.0, 1.0, 0.25]), 0.5).tolist() == [0.25, 1, 4]
    # With alpha 1 the activations alone decide.
    assert smoothing_factors(np.array([1.0, 16.0, 64.0]), np.ones(3), 1.0).tolist() == [0.0625, 1, 4]


@pytest.mark.parametrize(
    "model",
    [
        convolutions(),
        convolutions(RELU),
        convolutions(("LeakyRelu", (), {"alpha": 0.1}), POOL),
        convolutions(RELU, groups=8),
        convolutions(RELU, groups=2),
        convolutions(RELU, ("GlobalAveragePool", (), {}), FLATTEN, second=weight(np.random.default_rng(1), 8, 5)),
        convolutions(RELU, POOL, FLATTEN, second=weight(np.random.default_rng(1), 8 * 16, 5)),
    ],
    ids=["plain", "relu", "leaky and pool", "depthwise", "groups", "mean of positions", "positions side by side"],
)
def test_the_same_outputs_to_the_last_bit(model):
    equalizer = Equalizer(anatomy(model))
    equalizer.cross_layers()
    (entry,) = equalizer.details()
    assert entry["rescaled"] >= 4
    result = equalizer.model()
    x = np.random.default_rng(2).normal(size=(4, 3, 8, 8)).astype(np.float32)
    np.testing.assert_array_equal(outputs(result, x=x), outputs(model, x=x))
    before, after = (np.abs(stored(one)["w1"]).max((1, 2, 3)) for one in (model, result))
    assert after.max() / after.min() < 0.25 * before.max() / before.min()


def test_neighbours_reach_equally_far_to_within_a_factor_of_two():
    equalizer = Equalizer(anatomy(convolutions(RELU)))
    equalizer.cross_layers()
    parts = stored(equalizer.model())
    ratio = np.abs(parts["w1"]).max((1, 2, 3)) / np.abs(parts["w2"]).max((0, 2, 3))
    # Rounding a factor to a power of two leaves up to the root of two of it, and up to two of the ratio.
    assert np.all(np.abs(np.log2(ratio / np.median(ratio))) <= 1 + 1e-6)


def test_what_cuts_or_is_read_elsewhere_stays():
    assert not links(anatomy(convolutions(("Clip", ("zero", "six"), {}))))
    assert not links(anatomy(convolutions(("Sigmoid", (), {}))))
    model = convolutions(RELU)
    model.graph.output.append(value("v1", ["n", 8, None, None]))
    assert not links(anatomy(model))


def test_channels_that_are_alike_stay():
    model = digits_model()
    equalizer = Equalizer(anatomy(model))
    equalizer.cross_layers()
    assert all(entry["rescaled"] <= 0.1 * entry["channels"] for entry in equalizer.details())


def norm_and_projections(*, residual):
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("LayerNormalization", ["x", "gamma", "beta"], ["n"], "norm"),
        helper.make_node("MatMul", ["n", "q"], ["a"], "query"),
        helper.make_node("MatMul", ["n", "k"], ["b"], "key"),
        helper.make_node("Mul", ["a", "b"], ["c"], "product"),
        helper.make_node("Add", ["c", "n" if residual else "x"], ["y"], "sum"),
    ]
    weights = {
        "gamma": SIZES.astype(np.float32),
        "beta": weight(rng, 8),
        "q": weight(rng, 8, 8),
        "k": weight(rng, 8, 8),
    }
    return make_model(nodes, [value("x", ["n", 5, 8])], [value("y", ["n", 5, 8])], weights)


@pytest.mark.parametrize("residual", [False, True])
def test_outliers_behind_a_norm_move_into_all_weights_that_they_meet(residual, tmp_path):
    """Where a residual sum reads the norm's output too, it reads it as it is, and the layers a divided copy."""
    model = norm_and_projections(residual=residual)
    x = np.random.default_rng(1).normal(size=(64, 5, 8)).astype(np.float32)
    added = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-5) if residual else x
    added = added * stored(model)["gamma"] + stored(model)["beta"] if residual else added
    found = {}
    for smoothing in (None, 0.5):
        spec = QuantizeStatic(smoothing=smoothing, equalization=False)
        calibrated = static.calibrate(model, spec, Context(tmp_path, threads=1), dataset(tmp_path, x=x))
        np.testing.assert_array_equal(outputs(calibrated.graph, x=x), outputs(model, x=x))
        result = static.insert(calibrated)
        found[smoothing] = sqnr(outputs(model, x=x) - added, outputs(result, x=x) - added)
    (entry,) = calibrated.rescaled
    assert (entry["value"], entry["channels"]) == ("n", 8)
    assert [link.is_shared for link in links(anatomy(model))] == [residual]
    assert found[0.5] > found[None] + 3


@pytest.mark.parametrize(("settings", "gain"), [({}, 12), ({"per_channel": False}, 15), ({"weight_bits": 4}, 12)])
def test_uneven_channels_lose_no_more_than_even_ones(settings, gain, tmp_path):
    """Networks that compute the same; the channels of one differ by powers of two."""
    images = np.load(DIGITS / "evaluation.npz")["image"]
    context = Context(tmp_path, threads=1)
    found = {}
    for name, model in (("even", digits_model()), ("uneven", uneven_digits())):
        expected = outputs(model, image=images)
        for equalization in (True, False):
            spec = QuantizeStatic(equalization=equalization, **settings)
            result = static.insert(static.calibrate(model, spec, context, digits_calibration()))
            found[name, equalization] = sqnr(expected, outputs(result, image=images))
    assert found["uneven", True] > found["uneven", False] + gain
    assert found["uneven", True] > found["even", True] - 1.5
    assert found["even", True] > found["even", False] - 0.6
