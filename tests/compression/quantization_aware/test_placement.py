"""Where pairs stand, with how many bits, and what reads them."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import pytest
from onnx import helper

from compression.graph.weights import find_weights
from compression.quantization.aware.pairs import with_pairs
from compression.quantization.aware.placement import make_plan
from compression.quantization.spec import QuantizeAware
from tests.compression.models import cnn, make_model, mlp, two_inputs, value, weight
from tests.compression.quantization_aware.networks import residual


def plan_of(model, *, reduce_range=False, unfit=(), leave=(), **settings):
    weights = [one for one in find_weights(model) if one.name not in leave]
    return make_plan(model, weights, unfit, QuantizeAware(**settings), reduce_range=reduce_range)


def bits(plan):
    return {name: activation.bits for name, activation in plan.activations.items()}


def owners(plan):
    return {name: activation.owner for name, activation in plan.activations.items()}


def test_around_layers_and_behind_what_follows_them():
    plan = plan_of(cnn())
    # Behind the ReLU, not before it; pooling and Flatten only move what the second ReLU gives.
    assert owners(plan) == {"x": "x", "r1": "r1", "r2": "r2", "p": "r2", "f": "r2", "logits": "logits"}
    assert {name: one.axis for name, one in plan.weights.items()} == {
        "conv1.weight": 0,
        "conv2.weight": 0,
        "fc.weight": 0,
    }
    assert {bias.initializer: (bias.owner, bias.weight) for bias in plan.biases.values()} == {
        "conv1.bias": ("x", "conv1.weight"),
        "conv2.bias": ("r1", "conv2.weight"),
        "fc.bias": ("r2", "fc.weight"),
    }


def test_sums_compute_in_integers():
    plan = plan_of(residual())
    assert owners(plan) == {
        "x": "x",
        "stemmed": "stemmed",
        "block": "block",
        "rectified": "rectified",
        "deep": "deep",
        "pooled": "deep",
        "flat": "deep",
        "logits": "logits",
    }


def test_first_and_last_layers_keep_8_bits():
    model = residual()
    kept, all_few = (
        plan_of(model, weight_bits=3, activation_bits=4, keep_first_last_8bit=keep) for keep in (True, False)
    )
    few = {"stemmed": 4, "block": 4, "rectified": 4}
    # What is left of the output's bits saves nothing.
    assert bits(kept) == {"x": 8, **few, "deep": 8, "pooled": 8, "flat": 8, "logits": 8}
    assert bits(all_few) == {"x": 4, **few, "deep": 4, "pooled": 4, "flat": 4, "logits": 8}
    assert [one.bits for one in kept.weights.values()] == [8, 3, 3, 8]
    assert [one.bits for one in all_few.weights.values()] == [3, 3, 3, 3]


def test_7_bits_where_8_would_saturate():
    plan = plan_of(residual(), weight_bits=8, activation_bits=4, reduce_range=True)
    assert [one.bits for one in plan.weights.values()] == [7, 8, 8, 7]
    plan = plan_of(residual(), weight_bits=4, reduce_range=True, keep_first_last_8bit=False)
    assert [one.bits for one in plan.weights.values()] == [4, 4, 4, 4]


def test_activations_in_float():
    plan = plan_of(residual(), weight_bits=4, activation_bits=None)
    assert not plan.activations
    assert not plan.biases
    assert len(plan.weights) == 4


def test_what_is_left_stays_float():
    plan = plan_of(residual(), leave={"block.weight"})
    assert "block.weight" not in plan.weights
    assert "block" not in plan.activations  # so the sum is computed in float, and rounded for the next layer
    assert set(plan.activations) == {"x", "stemmed", "rectified", "deep", "pooled", "flat", "logits"} - {"stemmed"} | {
        "stemmed"
    }
    assert plan_of(residual(), unfit={"fc"}).weights.keys() == {"stem.weight", "block.weight", "deep.weight"}


def test_products_and_the_sums_behind_them():
    plan = plan_of(mlp())
    assert owners(plan) == {"x": "x", "r1": "r1", "logits": "logits"}
    assert {name: one.axis for name, one in plan.weights.items()} == {"w1": 1, "w2": 1}
    assert not plan.biases


def test_several_inputs():
    plan = plan_of(two_inputs(), activation_bits=4)
    assert bits(plan) == {"a": 8, "b": 8, "pa": 8, "pb": 8, "y": 8}


def test_one_scale_for_each_tensor():
    assert {one.axis for one in plan_of(residual(), per_channel=False).weights.values()} == {None}


def test_a_weight_that_two_layers_share():
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Gemm", ["x", "w", "b"], ["h"], "first"),
        helper.make_node("Relu", ["h"], ["r"], "relu"),
        helper.make_node("Gemm", ["r", "w", "b"], ["s"], "second"),
        helper.make_node("Gemm", ["s", "w"], ["y"], "third", transB=1),
    ]
    weights = {"w": weight(rng, 6, 6), "b": weight(rng, 6)}
    plan = plan_of(make_model(nodes, [value("x", ["n", 6])], [value("y", ["n", 6])], weights))
    assert plan.layers == {"h": "w", "s": "w", "y": "w"}
    assert plan.weights["w"].axis is None  # the channels of the third are not those of the others
    assert [(bias.prefix, bias.owner) for bias in plan.biases.values()] == [("b", "x"), ("b#2", "r")]


@pytest.mark.parametrize("settings", [{"transA": 1}, {"alpha": 0.5}, {"beta": 2.0}])
def test_a_gemm_with_factors_stays_float(settings):
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("Gemm", ["x", "w", "b"], ["y"], "gemm", **settings)]
    model = make_model(nodes, [value("x", [6, 6])], [value("y", [6, 6])], {"w": weight(rng, 6, 6), "b": weight(rng, 6)})
    assert not plan_of(model).weights


def test_pairs_as_onnx():
    model = residual()
    result = with_pairs(model, plan_of(model))
    onnx.checker.check_model(result, full_check=True)
    readers = {name: node for node in result.graph.node for name in node.input}
    assert readers["x"].op_type == "QuantizeLinear"
    assert readers["stem.weight"].op_type == "QuantizeLinear"
    assert readers["pooled_DequantizeLinear_Output"].name == "flatten"
    assert [out.name for out in result.graph.output] == ["logits"]
    (last,) = (node for node in result.graph.node if "logits" in node.output)
    assert last.op_type == "DequantizeLinear"
    count = Counter(node.op_type for node in result.graph.node)
    assert count["QuantizeLinear"] == count["DequantizeLinear"] == 8 + 4 + 2
