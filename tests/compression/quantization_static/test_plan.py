"""Where a graph computes in integers, and what reads rounded values."""

from __future__ import annotations

from collections import Counter

import numpy as np
import onnx
import onnxruntime
from onnx import helper

from compression.context import Context
from compression.graph.weights import find_weights
from compression.quantization import static
from compression.quantization.integer.kernels import kernels
from compression.quantization.integer.plan import examine, make_plan
from compression.spec import QuantizeStatic
from tests.compression.models import cnn, make_model, mlp, value, weight
from tests.compression.quantization_aware.networks import residual
from tests.compression.quantizing import dataset, outputs, sqnr, stored


def plan_of(model, float_nodes=(), unfit=()):
    return make_plan(examine(model, find_weights(model), unfit), float_nodes)


def block(seed=0):
    """Squeeze and excitation with SiLU, as EfficientNets have it; input `x` (n, 3, 8, 8), output `y` (n, 8, 8, 8)."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["c"], "stem_conv", pads=[1, 1, 1, 1]),
        helper.make_node("Sigmoid", ["c"], ["s"], "sigmoid"),
        helper.make_node("Mul", ["c", "s"], ["silu"], "mul"),
        helper.make_node("GlobalAveragePool", ["silu"], ["pooled"], "pool"),
        helper.make_node("Conv", ["pooled", "down", "down_bias"], ["d"], "down_conv"),
        helper.make_node("Relu", ["d"], ["r"], "relu"),
        helper.make_node("Conv", ["r", "up"], ["u"], "up_conv"),
        helper.make_node("Sigmoid", ["u"], ["gate"], "gate_sigmoid"),
        helper.make_node("Mul", ["silu", "gate"], ["gated"], "gate_mul"),
        helper.make_node("Conv", ["gated", "last"], ["y"], "last_conv"),
    ]
    weights = {
        "stem": weight(rng, 8, 3, 3, 3),
        "down": weight(rng, 2, 8, 1, 1),
        "down_bias": weight(rng, 2),
        "up": weight(rng, 8, 2, 1, 1),
        "last": weight(rng, 8, 8, 1, 1),
    }
    return make_model(nodes, [value("x", ["n", 3, 8, 8])], [value("y", ["n", 8, 8, 8])], weights)


def encoder(seed=0):
    """A feed-forward block of a transformer with its residual sum; `x` (n, 5, 16) to `y`, normed twice."""
    rng = np.random.default_rng(seed)
    nodes = [
        helper.make_node("LayerNormalization", ["x", "g1", "b1"], ["n1"], "norm1"),
        helper.make_node("MatMul", ["n1", "w1"], ["p1"], "wide"),
        helper.make_node("Add", ["p1", "c1"], ["h1"], "wide_bias"),
        helper.make_node("Erf", ["h1"], ["e"], "erf"),
        helper.make_node("Mul", ["h1", "e"], ["a"], "gelu_like"),
        helper.make_node("MatMul", ["a", "w2"], ["p2"], "narrow"),
        helper.make_node("Add", ["c2", "p2"], ["h2"], "narrow_bias"),
        helper.make_node("Add", ["n1", "h2"], ["sum"], "residual"),
        helper.make_node("LayerNormalization", ["sum", "g1", "b1"], ["y"], "norm2"),
    ]
    weights = {
        "g1": rng.uniform(0.5, 1.5, 16).astype(np.float32),
        "b1": weight(rng, 16),
        "w1": weight(rng, 64, 16).T.copy(),
        "c1": weight(rng, 64),
        "w2": weight(rng, 16, 64).T.copy(),
        "c2": weight(rng, 16),
    }
    return make_model(nodes, [value("x", ["n", 5, 16])], [value("y", ["n", 5, 16])], weights)


def test_around_layers_and_behind_what_follows_them():
    plan = plan_of(cnn())
    # The last layer's output comes as floats: its kernel can, and nobody reads integers.
    assert plan.owners == {"x": "x", "r1": "r1", "r2": "r2", "p": "r2", "f": "r2"}
    assert plan.integer == {"conv1", "conv2", "pool", "flatten", "fc"}
    assert plan.cuts == {"r1": "relu1", "r2": "relu2"}
    assert plan.exact == {"x"}


def test_residual_sums_compute_in_integers():
    plan = plan_of(residual())
    assert "add" in plan.integer
    assert {"stemmed", "block", "rectified"} <= plan.owners.keys()


def test_a_layer_in_float_leaves_its_neighbours_their_pairs_and_nothing_more():
    plan = plan_of(cnn(), {"conv2"})
    assert plan.owners == {"x": "x", "r1": "r1", "f": "f"}
    assert plan.integer == {"conv1", "fc"}
    assert plan.exact == {"x", "f"}
    assert plan_of(residual(), {"block"}).integer.isdisjoint({"add", "block"})


def test_gates_compute_in_integers():
    plan = plan_of(block())
    assert plan.integer == {node.name for node in block().graph.node} - {"relu"}
    without_layers = plan_of(block(), {"stem_conv"})
    assert without_layers.integer.isdisjoint({"sigmoid", "mul", "pool"})


def test_transformers_keep_their_sums_and_norms_in_float():
    plan = plan_of(encoder())
    assert plan.integer == {"wide", "narrow"}
    assert plan.owners == {"n1": "n1", "a": "a"}
    assert plan.exact == {"n1", "a"}


def test_what_computes_in_float_reads_unrounded_values(tmp_path):
    """Only the inputs of layers are rounded: the residual sum reads the norm's output itself."""
    model = encoder()
    x = np.random.default_rng(1).normal(size=(32, 5, 16)).astype(np.float32)
    calibrated = static.calibrate(model, QuantizeStatic(activation_bits=16), Context(tmp_path), dataset(tmp_path, x=x))
    result = static.insert(calibrated)
    readers = {node.name: list(node.input) for node in result.graph.node}
    assert readers["residual"][0] == "n1"
    assert readers["wide"][0] == "n1_DequantizeLinear_Output"
    assert readers["gelu_like"] == ["h1", "e"]
    assert sqnr(outputs(model, x=x), outputs(result, x=x)) > 40


def test_the_runtime_fuses_every_pair(tmp_path):
    x = np.random.default_rng(1).normal(size=(32, 3, 8, 8)).astype(np.float32)
    context = Context(tmp_path, threads=1)
    calibrated = static.calibrate(block(), QuantizeStatic(), context, dataset(tmp_path, x=x))
    result = static.insert(calibrated)
    found = kernels(result, context)
    assert found.integer == {
        "QLinearConv": 4,
        "QLinearGlobalAveragePool": 1,
        "QLinearMul": 2,
        "QLinearSigmoid": 2,
    }
    assert found.float_layers == {}
    # The input's, and the output's that comes as floats.
    assert found.pairs == 2
    assert sqnr(outputs(block(), x=x), outputs(result, x=x)) > 30


def test_products_with_biases_become_gemm(tmp_path):
    x = np.random.default_rng(1).normal(size=(32, 64)).astype(np.float32)
    context = Context(tmp_path, threads=1)
    calibrated = static.calibrate(mlp(), QuantizeStatic(), context, dataset(tmp_path, x=x))
    result = static.insert(calibrated)
    assert kernels(result, context).integer == {"QGemm": 2}
    assert [node.name for node in result.graph.node if node.op_type == "Gemm"] == ["matmul1", "matmul2"]
    assert {"w1_quantized", "w2_quantized", "b1_quantized", "b2_quantized"} <= stored(result).keys()


def test_a_mean_over_positions_becomes_pooling(tmp_path):
    rng = np.random.default_rng(0)
    for keepdims, shape in ((1, ["n", 4, 1, 1]), (0, ["n", 4])):
        nodes = [
            helper.make_node("Conv", ["x", "w"], ["c"], "conv"),
            helper.make_node("ReduceMean", ["c", "axes"], ["y"], "mean", keepdims=keepdims),
        ]
        weights = {"w": weight(rng, 4, 3, 3, 3), "axes": np.array([-1, -2])}
        model = make_model(nodes, [value("x", ["n", 3, 8, 8])], [value("y", shape)], weights)
        x = rng.normal(size=(16, 3, 8, 8)).astype(np.float32)
        context = Context(tmp_path, threads=1)
        calibrated = static.calibrate(model, QuantizeStatic(), context, dataset(tmp_path, x=x))
        np.testing.assert_allclose(outputs(calibrated.graph, x=x), outputs(model, x=x), rtol=1e-5, atol=1e-6)
        result = static.insert(calibrated)
        assert "QLinearGlobalAveragePool" in kernels(result, context).integer
        assert outputs(result, x=x).shape == outputs(model, x=x).shape


def test_insert_gives_the_same_bytes_again_and_leaves_what_it_is_given(tmp_path):
    x = np.random.default_rng(1).normal(size=(32, 1, 8, 8)).astype(np.float32)
    calibrated = static.calibrate(cnn(), QuantizeStatic(), Context(tmp_path), dataset(tmp_path, x=x))
    before = calibrated.graph.SerializeToString()
    first = static.insert(calibrated).SerializeToString()
    others = static.insert(calibrated, ("conv2",))
    assert [node.op_type for node in others.graph.node if node.name == "conv2"] == ["Conv"]
    np.testing.assert_array_equal(stored(others)["conv2.weight"], stored(cnn())["conv2.weight"])
    assert static.insert(calibrated).SerializeToString() == first
    assert calibrated.graph.SerializeToString() == before


def test_bits_by_node(tmp_path):
    x = np.random.default_rng(1).normal(size=(32, 1, 8, 8)).astype(np.float32)
    calibrated = static.calibrate(cnn(), QuantizeStatic(), Context(tmp_path), dataset(tmp_path, x=x))
    bits = {"conv2": static.Bits(weights=4, activations=16)}
    result = static.insert(calibrated, bits=bits)
    parts = stored(result)
    assert np.abs(parts["conv2.weight_quantized"]).max() == 7
    assert np.abs(parts["conv1.weight_quantized"]).max() > 64
    # The output is what the last layer reads, which wants 8.
    assert {name: parts[f"{name}_zero_point"].dtype for name in ("x", "r1", "r2")} == {
        "x": np.uint8,
        "r1": np.uint16,
        "r2": np.uint8,
    }
    onnx.checker.check_model(result, full_check=True)
    assert sqnr(outputs(cnn(), x=x), outputs(result, x=x)) > 15


def test_unsigned_weights_compute_the_same(tmp_path):
    x = np.random.default_rng(1).normal(size=(32, 1, 8, 8)).astype(np.float32)
    spec = QuantizeStatic(reduce_range=True)
    calibrated = static.calibrate(cnn(), spec, Context(tmp_path), dataset(tmp_path, x=x))
    signed = static.insert(calibrated)
    unsigned = static.insert(calibrated, unsigned_weights=True)
    assert stored(unsigned)["conv2.weight_quantized"].dtype == np.uint8
    assert set(stored(unsigned)["conv2.weight_zero_point"]) == {128}
    # All 8 bits of the weights serve, as no kernel saturates.
    expected = outputs(cnn(), x=x)
    assert sqnr(expected, outputs(unsigned, x=x)) > sqnr(expected, outputs(signed, x=x))


def test_a_value_that_is_read_and_given_out(tmp_path):
    """The output of a convolution that is an output of the model too comes as its kernel rounds it."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w1"], ["features"], "first"),
        helper.make_node("Conv", ["features", "w2"], ["y"], "second"),
    ]
    weights = {"w1": weight(rng, 4, 3, 3, 3), "w2": weight(rng, 4, 4, 3, 3)}
    shapes = value("features", ["n", 4, 6, 6]), value("y", ["n", 4, 4, 4])
    model = make_model(nodes, [value("x", ["n", 3, 8, 8])], list(shapes), weights)
    x = rng.normal(size=(16, 3, 8, 8)).astype(np.float32)
    context = Context(tmp_path, threads=1)
    calibrated = static.calibrate(model, QuantizeStatic(), context, dataset(tmp_path, x=x))
    result = static.insert(calibrated)
    assert [output.name for output in result.graph.output] == ["features", "y"]
    assert kernels(result, context).integer == {"QLinearConv": 2}
    session = onnxruntime.InferenceSession(result.SerializeToString(), providers=["CPUExecutionProvider"])
    found = session.run(None, {"x": x})
    steps = found[0] / stored(result)["features_scale"]
    np.testing.assert_allclose(steps, np.rint(steps), atol=1e-3)
    assert Counter(node.op_type for node in result.graph.node)["QuantizeLinear"] == 3
