"""Dynamic quantization against numbers worked out by hand, and on real digits."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import helper

from compression.errors import StepFailed
from compression.quantization.isa import saturates
from compression.spec import QuantizeDynamic
from tests.compression.models import cnn, embedding, make_model, mlp, value, weight
from tests.compression.quantizing import apply, digits_accuracy, digits_model, outputs, sqnr, stored

W = np.array([[2.0, 0.5], [-1.0, 0.25], [0.0, -0.1]], np.float32)


def one_layer():
    return make_model(
        [helper.make_node("MatMul", ["x", "w"], ["y"], "product")],
        [value("x", ["n", 3])],
        [value("y", ["n", 2])],
        {"w": W},
    )


@pytest.mark.parametrize(
    ("settings", "scales", "codes"),
    [
        ({"per_channel": False, "reduce_range": False}, 2 / 127, [[127, 32], [-64, 16], [0, -6]]),
        ({"per_channel": True, "reduce_range": False}, [2 / 127, 0.5 / 127], [[127, 127], [-64, 64], [0, -25]]),
        ({"per_channel": False, "reduce_range": True}, 2 / 64, [[64, 16], [-32, 8], [0, -3]]),
    ],
    ids=str,
)
def test_weights_are_rounded_to_the_nearest_multiple_of_their_scale(settings, scales, codes, tmp_path):
    result, details = apply(one_layer(), QuantizeDynamic(**settings), tmp_path)
    parts = stored(result)
    np.testing.assert_allclose(parts["w_scale"], scales, rtol=1e-6)
    np.testing.assert_array_equal(parts["w_quantized"], codes)
    assert details == {
        "reduce_range": settings["reduce_range"],
        "weights": [{"name": "w", "shape": [3, 2], "nodes": ["product"], "scales": np.size(scales)}],
    }


def test_activations_are_quantized_by_the_range_of_the_batch(tmp_path):
    """-1 to 3 is 255 steps of 4 / 255 with zero at code 64, as the specification of DynamicQuantizeLinear has it."""
    result, _ = apply(one_layer(), QuantizeDynamic(per_channel=False, reduce_range=False), tmp_path)
    x = np.array([[-1.0, 3.0, 0.5], [0.25, 1.0, 2.0]], np.float32)
    step = np.float32(4 / 255)
    seen = (np.clip(np.rint(x / step) + 64, 0, 255) - 64) * step
    codes = np.array([[127, 32], [-64, 16], [0, -6]]) * np.float32(2 / 127)
    np.testing.assert_allclose(outputs(result, x=x), seen @ codes, rtol=1e-5)


def test_the_cpu_decides_about_7_bits_where_the_spec_does_not(tmp_path):
    result, details = apply(one_layer(), QuantizeDynamic(), tmp_path)
    assert details["reduce_range"] is saturates()
    assert np.abs(stored(result)["w_quantized"]).max() == (64 if saturates() else 127)


@pytest.mark.parametrize("per_channel", [True, False])
def test_digits_stay_within_a_point_of_float(per_channel, tmp_path):
    model = digits_model()
    result, details = apply(model, QuantizeDynamic(per_channel=per_channel), tmp_path)
    assert digits_accuracy(result) > digits_accuracy(model) - 0.01
    assert result.ByteSize() < 0.3 * model.ByteSize()
    assert all("skipped" not in entry for entry in details["weights"])


def test_an_embedding_and_what_follows(tmp_path):
    model = embedding()
    result, details = apply(model, QuantizeDynamic(), tmp_path)
    ids = np.random.default_rng(0).integers(0, 50, (4, 7))
    assert sqnr(outputs(model, ids=ids), outputs(result, ids=ids)) > 30
    assert [entry["name"] for entry in details["weights"]] == ["table", "head"]
    assert stored(result)["table_quantized"].nbytes == 50 * 16


def recurrent(operator, gates):
    rng = np.random.default_rng(0)
    weights = {"w": weight(rng, 1, gates * 8, 4), "r": weight(rng, 1, gates * 8, 8), "axes": np.array([1])}
    return make_model(
        [
            helper.make_node(operator, ["x", "w", "r"], ["o"], "recurrent", hidden_size=8),
            helper.make_node("Squeeze", ["o", "axes"], ["s"], "squeeze"),
            helper.make_node("MatMul", ["s", "head"], ["y"], "product"),
        ],
        [value("x", [5, "n", 4])],
        [value("y", [5, "n", 3])],
        weights | {"head": weight(rng, 8, 3)},
    )


def test_an_lstm_is_quantized(tmp_path):
    model = recurrent("LSTM", 4)
    result, details = apply(model, QuantizeDynamic(), tmp_path)
    assert {entry["name"]: entry.get("scales") for entry in details["weights"]} == {"w": 32, "r": 32, "head": 3}
    x = np.random.default_rng(0).standard_normal((5, 6, 4)).astype(np.float32)
    assert sqnr(outputs(model, x=x), outputs(result, x=x)) > 25


def test_a_gru_has_no_integer_form_and_the_rest_has(tmp_path):
    model = recurrent("GRU", 3)
    result, details = apply(model, QuantizeDynamic(), tmp_path)
    assert {entry["name"]: "skipped" in entry for entry in details["weights"]} == {"w": True, "r": True, "head": False}
    np.testing.assert_array_equal(stored(result)["w"], stored(model)["w"])
    with pytest.raises(StepFailed) as error:
        apply(model, QuantizeDynamic(include=("recurrent",)), tmp_path)
    assert error.value.code == "no_weights"


def test_attention_multiplies_whole_numbers_with_its_weights_and_floats_among_activations(tmp_path):
    rng = np.random.default_rng(0)
    nodes = [helper.make_node("MatMul", ["x", name], [f"{name}x"], f"{name}_product") for name in ("q", "k", "v")]
    nodes += [
        helper.make_node("Transpose", ["kx"], ["kt"], "turn", perm=[0, 2, 1]),
        helper.make_node("MatMul", ["qx", "kt"], ["scores"], "scores"),
        helper.make_node("Softmax", ["scores"], ["shares"], "softmax", axis=-1),
        helper.make_node("MatMul", ["shares", "vx"], ["mixed"], "mix"),
        helper.make_node("MatMul", ["mixed", "o"], ["y"], "out"),
    ]
    weights = {name: weight(rng, 16, 16) for name in ("q", "k", "v", "o")}
    model = make_model(nodes, [value("x", ["n", 6, 16])], [value("y", ["n", 6, 16])], weights)
    result, details = apply(model, QuantizeDynamic(), tmp_path)
    assert {entry["name"]: entry.get("scales") for entry in details["weights"]} == dict.fromkeys(weights, 16)
    kinds = [node.op_type for node in result.graph.node]
    assert (kinds.count("MatMulInteger"), kinds.count("MatMul")) == (4, 2)
    x = rng.standard_normal((3, 6, 16)).astype(np.float32)
    assert sqnr(outputs(model, x=x), outputs(result, x=x)) > 25


def test_an_excluded_layer_stays_float(tmp_path):
    model = cnn()
    result, details = apply(model, QuantizeDynamic(exclude=("conv2.weight",)), tmp_path)
    np.testing.assert_array_equal(stored(result)["conv2.weight"], stored(model)["conv2.weight"])
    assert [entry["name"] for entry in details["weights"]] == ["conv1.weight", "fc.weight"]
    assert [node.op_type for node in result.graph.node if "Conv" in node.op_type] == ["ConvInteger", "Conv"]


def test_only_what_is_included_is_quantized(tmp_path):
    model = mlp()
    result, details = apply(model, QuantizeDynamic(include=("matmul1",)), tmp_path)
    np.testing.assert_array_equal(stored(result)["w2"], stored(model)["w2"])
    assert [entry["name"] for entry in details["weights"]] == ["w1"]


def test_nodes_come_after_what_their_branches_capture(tmp_path):
    rng = np.random.default_rng(0)
    branches = {
        "then_branch": helper.make_graph(
            [helper.make_node("Neg", ["p"], ["t"], "negate")], "then", [], [value("t", ["n", 4])]
        ),
        "else_branch": helper.make_graph(
            [helper.make_node("Abs", ["p"], ["e"], "absolute")], "else", [], [value("e", ["n", 4])]
        ),
    }
    model = make_model(
        [
            helper.make_node("MatMul", ["x", "w"], ["p"], "product"),
            helper.make_node("ReduceSum", ["x"], ["s"], "sum", keepdims=0),
            helper.make_node("Greater", ["s", "zero"], ["positive"], "compare"),
            helper.make_node("If", ["positive"], ["y"], "if", **branches),
        ],
        [value("x", ["n", 4])],
        [value("y", ["n", 4])],
        {"w": weight(rng, 4, 4), "zero": np.array(0, np.float32)},
    )
    result, _ = apply(model, QuantizeDynamic(), tmp_path)
    x = np.abs(rng.standard_normal((6, 4))).astype(np.float32)
    for sign in (1, -1):
        assert sqnr(outputs(model, x=sign * x), outputs(result, x=sign * x)) > 30
