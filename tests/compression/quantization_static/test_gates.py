"""Hard sigmoids and hard swishes in integers."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from compression.context import Context
from compression.quantization.integer.gates import Gate, Gated, cut, fitted, gate_of
from compression.quantization.integer.kernels import kernels
from compression.quantization.integer.ranges import Grid
from compression.quantization.static import calibrate, insert, quantize_static
from compression.spec import QuantizeStatic
from tests.compression.models import make_model, value, weight
from tests.compression.quantizing import dataset, outputs, sqnr, stored

BYTES = Grid(0, 255)
SWISH = Gate(1 / 6, -3.0, 3.0)


def swishing(*, alpha=1 / 6, beta=0.5, read_otherwise=False, seed=0):
    """Convolution, hard swish, squeeze and excitation with a hard sigmoid, convolution; `x` (n, 3, 8, 8)."""
    rng = np.random.default_rng(seed)
    hard = {"alpha": alpha, "beta": beta}
    nodes = [
        helper.make_node("Conv", ["x", "stem"], ["c"], "stem_conv", pads=[1, 1, 1, 1]),
        helper.make_node("HardSigmoid", ["c"], ["s"], "swish_gate", **hard),
        helper.make_node("Mul", ["c", "s"], ["swish"], "swish_mul"),
        helper.make_node("GlobalAveragePool", ["swish"], ["pooled"], "pool"),
        helper.make_node("Conv", ["pooled", "down"], ["d"], "down_conv"),
        helper.make_node("HardSigmoid", ["d"], ["gate"], "channel_gate", **hard),
        helper.make_node("Mul", ["swish", "gate"], ["gated"], "gate_mul"),
        helper.make_node("Conv", ["gated", "last"], ["y"], "last_conv"),
    ]
    outs = [value("y", ["n", 8, 8, 8])]
    weights = {
        "stem": 3 * weight(rng, 8, 3, 3, 3),
        "down": 3 * weight(rng, 8, 8, 1, 1),
        "last": weight(rng, 8, 8, 1, 1),
    }
    if read_otherwise:
        nodes.append(helper.make_node("Conv", ["c", "last"], ["z"], "other_conv"))
        outs.append(value("z", ["n", 8, 8, 8]))
    return make_model(nodes, [value("x", ["n", 3, 8, 8])], outs, weights)


def pictures(folder, count):
    return dataset(folder, x=noise(0, count))


def noise(seed, count):
    return np.random.default_rng(seed).standard_normal((count, 3, 8, 8)).astype(np.float32)


def everything(model, x, *more):
    """All outputs in ONNX Runtime as the graph stands, with values inside as outputs, too."""
    probe = onnx.ModelProto()
    probe.CopyFrom(model)
    probe.graph.output.extend(onnx.ValueInfoProto(name=name) for name in more)
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(probe.SerializeToString(), options).run(None, {"x": x})


def test_no_hard_sigmoid_is_computed_in_float(tmp_path):
    model, data = swishing(), pictures(tmp_path, 64)
    result, details = quantize_static(model, QuantizeStatic(), Context(tmp_path), data)
    found = kernels(result, Context(tmp_path))
    assert found.pairs == 2, "one at each end of the graph"
    assert found.integer["QLinearMul"] == 2
    assert not any(node.op_type == "HardSigmoid" for node in result.graph.node)
    assert details["runtime"]["float_layers"] == {}
    x = noise(5, 16)
    assert sqnr(outputs(model, x=x), outputs(result, x=x)) > 28


@pytest.mark.parametrize(("alpha", "beta"), [(1 / 6, 0.5), (0.2, 0.5), (0.3, 0.25)])
def test_cut_numbers_mean_the_hard_sigmoid_of_what_the_numbers_meant(tmp_path, alpha, beta):
    """Against ONNX Runtime's own hard sigmoid of the dequantized input: nothing is rounded on the way."""
    model = swishing(alpha=alpha, beta=beta)
    result = insert(calibrate(model, QuantizeStatic(), Context(tmp_path), pictures(tmp_path, 64)))
    _, before, after = everything(result, noise(1, 4), "c_DequantizeLinear_Output", "s_DequantizeLinear_Output")
    expected = np.clip(alpha * before + beta, 0, 1)
    # The end, 1, need not be a multiple of the step where 1 / alpha is not one of the input's.
    step = alpha * float(stored(result)["c_scale"])
    assert np.abs(after - expected)[expected < 1].max() < 1e-5
    assert np.abs(after - expected).max() <= (1e-5 if beta == 0.5 else step / 2)
    assert set(after[expected < 1e-6]) == {0.0}


def test_a_swished_value_spends_no_number_below_where_the_gate_opens(tmp_path):
    data = pictures(tmp_path, 64)
    alone = stored(insert(calibrate(swishing(), QuantizeStatic(), Context(tmp_path), data)))
    # The lowest number is -3: what lies below is swished to zero as well.
    assert -int(alone["c_zero_point"]) * float(alone["c_scale"]) == pytest.approx(-3)
    # What only opens a gate needs no number above 3 either.
    assert -int(alone["d_zero_point"]) * float(alone["d_scale"]) == pytest.approx(-3)
    assert (255 - int(alone["d_zero_point"])) * float(alone["d_scale"]) == pytest.approx(3, abs=0.03)
    model = swishing(read_otherwise=True)
    shared = stored(insert(calibrate(model, QuantizeStatic(calibration="minmax"), Context(tmp_path), data)))
    x = np.concatenate([batch.inputs["x"] for batch in data.batches(64)])
    lowest = everything(model, x, "c")[-1].min()
    assert lowest < -3
    assert -int(shared["c_zero_point"]) * float(shared["c_scale"]) <= lowest * 0.99


def test_no_cut_where_numbers_have_no_form_for_it(tmp_path):
    """Signed and 16-bit numbers, and gates that are open at nothing below zero: pairs around a float node."""
    data = pictures(tmp_path, 32)
    x = noise(2, 4)
    for model, spec in (
        (swishing(), QuantizeStatic(symmetric_activations=True)),
        (swishing(), QuantizeStatic(activation_bits=16)),
        (swishing(alpha=0.5, beta=1.5), QuantizeStatic()),
    ):
        result = insert(calibrate(model, spec, Context(tmp_path), data))
        assert sum(node.op_type == "HardSigmoid" for node in result.graph.node) == 2
        assert sqnr(outputs(model, x=x), outputs(result, x=x)) > 25


@pytest.mark.parametrize("high", [0.5, 3.0, 40.0])
@pytest.mark.parametrize("low", [-0.1, -3.0, -11.7])
@pytest.mark.parametrize("cut_below", [True, False])
def test_parameters_reach_as_far_as_they_must(low, high, cut_below):
    parameters = fitted(low, high, Gated(SWISH, cut_below, cut_above=False), BYTES)
    reaches = [(number - parameters.zero_point) * parameters.scale for number in (0, 255)]
    assert reaches[0] == pytest.approx(-3) if cut_below else reaches[0] <= min(low, -3) * (1 - 1e-5)
    assert reaches[1] >= high * (1 - 1e-5)
    found = cut(parameters, SWISH, BYTES)
    assert found is not None
    assert (found.low - parameters.zero_point) * parameters.scale == pytest.approx(-3, rel=1e-5)


def test_hard_swish_is_one_product_of_integers(tmp_path):
    """ONNX's own HardSwish, which the runtime splits into nodes without names, several times in a graph."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["c0"], "conv0", pads=[1, 1, 1, 1]),
        helper.make_node("HardSwish", ["c0"], ["h0"], "swish0"),
        helper.make_node("Conv", ["h0", "w1"], ["c1"], "conv1"),
        helper.make_node("HardSwish", ["c1"], ["h1"], "swish1"),
        helper.make_node("Conv", ["h1", "w2"], ["y"], "conv2"),
    ]
    weights = {"w0": 3 * weight(rng, 8, 3, 3, 3), "w1": 3 * weight(rng, 8, 8, 1, 1), "w2": weight(rng, 8, 8, 1, 1)}
    model = make_model(nodes, [value("x", ["n", 3, 8, 8])], [value("y", ["n", 8, 8, 8])], weights)
    result, details = quantize_static(model, QuantizeStatic(), Context(tmp_path), pictures(tmp_path, 64))
    assert details["runtime"] == {
        "integer_nodes": {"QLinearConv": 3, "QLinearMul": 2},
        "float_layers": {},
        "unfused_pairs": 2,
    }
    x = noise(5, 16)
    assert sqnr(outputs(model, x=x), outputs(result, x=x)) > 28


def test_what_is_a_gate():
    def node(**attributes):
        return helper.make_node("HardSigmoid", ["x"], ["y"], **attributes)

    assert gate_of(node()) == Gate(pytest.approx(0.2), pytest.approx(-2.5), pytest.approx(2.5))
    assert gate_of(node(alpha=0.25, beta=0.25)) == Gate(0.25, -1.0, 3.0)
    assert gate_of(node(alpha=-1.0)) is None
    assert gate_of(node(beta=1.0)) is None
    assert gate_of(helper.make_node("Sigmoid", ["x"], ["y"])) is None
