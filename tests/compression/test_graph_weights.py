"""Which weights a graph has, what their axes mean, and choosing among them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper, numpy_helper

from compression.errors import StepFailed
from compression.graph.weights import find_weights, read, replace, select
from tests.compression import models

FLOAT = np.float32


def graph(nodes, weights):
    """An unchecked model around nodes; finding weights looks at names and operators alone."""
    tensors = [numpy_helper.from_array(value, name) for name, value in weights.items()]
    return helper.make_model(helper.make_graph(nodes, "g", [], [], tensors))


@pytest.mark.parametrize(
    ("operator", "position", "shape", "attributes", "axes"),
    [
        ("Conv", 1, (8, 4, 3, 3), {}, (0, 1)),
        ("ConvTranspose", 1, (4, 8, 3, 3), {}, (1, 0)),
        ("Gemm", 1, (4, 8), {}, (1, 0)),
        ("Gemm", 1, (8, 4), {"transB": 1}, (0, 1)),
        ("Gemm", 0, (8, 4), {}, (0, 1)),
        ("Gemm", 0, (4, 8), {"transA": 1}, (1, 0)),
        ("MatMul", 1, (2, 4, 8), {}, (2, 1)),
        ("MatMul", 0, (8, 4), {}, (0, 1)),
        ("Gather", 0, (100, 16), {}, (0, None)),
        ("LSTM", 1, (1, 32, 6), {}, (1, 2)),
        ("GRU", 2, (1, 24, 8), {}, (1, 2)),
    ],
)
def test_axes(operator, position, shape, attributes, axes):
    inputs = ["a", "b", "c"]
    node = helper.make_node(operator, inputs, ["y"], "layer", **attributes)
    (weight,) = find_weights(graph([node], {inputs[position]: np.zeros(shape, FLOAT)}))
    assert (weight.name, weight.shape, weight.nodes) == (inputs[position], shape, ("layer",))
    assert (weight.output_axis, weight.input_axis) == axes
    assert weight.is_embedding == (operator == "Gather")


def test_biases_norms_and_integers_are_no_weights():
    nodes = [
        helper.make_node("Conv", ["x", "w", "bias"], ["c"]),
        helper.make_node("BatchNormalization", ["c", "scale", "shift", "mean", "var"], ["n"]),
        helper.make_node("Add", ["n", "matrix"], ["a"]),
        helper.make_node("Gather", ["integers", "a"], ["y"]),
    ]
    names = ("bias", "scale", "shift", "mean", "var")
    weights = {name: np.zeros(4, FLOAT) for name in names} | {
        "w": np.zeros((4, 1, 3, 3), FLOAT),
        "matrix": np.zeros((4, 4), FLOAT),
        "integers": np.zeros((4, 4), np.int64),
    }
    assert [weight.name for weight in find_weights(graph(nodes, weights))] == ["w"]


def test_a_shared_weight_is_one_with_the_axes_of_its_product():
    nodes = [
        helper.make_node("Gather", ["table", "ids"], ["e"], "lookup"),
        helper.make_node("Transpose", ["table"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["e", "t"], ["y"], "head"),
    ]
    (weight,) = find_weights(graph(nodes, {"table": np.zeros((100, 16), FLOAT)}))
    assert weight.nodes == ("lookup", "head")
    assert weight.operators == ("Gather", "MatMul")
    # The product sees (16, 100): its inputs lie along axis 1 of what is stored.
    assert (weight.output_axis, weight.input_axis) == (0, 1)


def test_transposes_compose():
    nodes = [
        helper.make_node("Transpose", ["w"], ["t1"], perm=[2, 0, 1]),
        helper.make_node("Identity", ["t1"], ["t2"]),
        helper.make_node("Transpose", ["t2"], ["t3"], perm=[1, 0, 2]),
        helper.make_node("MatMul", ["x", "t3"], ["y"], "head"),
    ]
    stored = np.zeros((2, 3, 5), FLOAT)
    (weight,) = find_weights(graph(nodes, {"w": stored}))
    seen = stored.transpose(2, 0, 1).transpose(1, 0, 2)
    assert stored.shape[weight.input_axis] == seen.shape[-2]
    assert stored.shape[weight.output_axis] == seen.shape[-1]


def test_a_node_without_a_name_goes_by_its_output():
    node = helper.make_node("Gemm", ["x", "w"], ["out"])
    assert find_weights(graph([node], {"w": np.zeros((2, 2), FLOAT)}))[0].nodes == ("Gemm:out",)


@pytest.mark.parametrize(
    ("include", "exclude", "expected"),
    [
        (("*",), (), ["conv1.weight", "conv2.weight", "fc.weight"]),
        (("conv*",), (), ["conv1.weight", "conv2.weight"]),
        (("fc",), (), ["fc.weight"]),
        (("fc.weight", "conv1"), (), ["conv1.weight", "fc.weight"]),
        (("*",), ("conv?",), ["fc.weight"]),
        (("*",), ("fc.weight",), ["conv1.weight", "conv2.weight"]),
    ],
)
def test_select(include, exclude, expected):
    assert [weight.name for weight in select(find_weights(models.cnn()), include, exclude)] == expected


def test_names_with_brackets_match_themselves():
    node = helper.make_node("Gemm", ["x", "layers[0].w"], ["y"], "n")
    weights = find_weights(graph([node], {"layers[0].w": np.zeros((2, 2), FLOAT)}))
    assert select(weights, ["layers[0].w"], []) == weights


def test_a_pattern_that_matches_nothing_suggests_names():
    with pytest.raises(StepFailed, match="did you mean 'conv2' or 'conv1'") as caught:
        select(find_weights(models.cnn()), ["conv3"], [])
    assert caught.value.code == "unknown_name"
    with pytest.raises(StepFailed, match="there are 'conv1") as caught:
        select(find_weights(models.cnn()), ["*"], ["zzzzzzzzzz"])
    assert caught.value.code == "unknown_name"


def test_nothing_left_or_nothing_there():
    with pytest.raises(StepFailed) as caught:
        select(find_weights(models.cnn()), ["*"], ["*"])
    assert caught.value.code == "no_weights"
    with pytest.raises(StepFailed) as caught:
        select([], ["*"], [])
    assert caught.value.code == "no_weights"


def test_read_and_replace_keep_shape_and_type():
    model = models.mlp(dtype=np.float16)
    weights = find_weights(model)
    doubled = {weight.name: values * 2 for weight, values in read(model, weights)}
    before = models.weights_of(model)
    replace(model, doubled)
    after = models.weights_of(model)
    np.testing.assert_array_equal(after["w1"], before["w1"] * 2)
    np.testing.assert_array_equal(after["b1"], before["b1"])
    assert after["w1"].dtype == np.float16
    with pytest.raises(ValueError, match="'w1' would change"):
        replace(model, {"w1": doubled["w1"].astype(np.float32)})
