"""Models whose names are those that quantizers would choose."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import helper

from compression.context import Context
from compression.data import DataSource, open_dataset
from compression.errors import StepFailed
from compression.quantization.names import check_unique, make_room
from compression.quantization.step import quantize
from compression.spec import QuantizeDynamic, QuantizeFloat16, QuantizeStatic, QuantizeWeightOnly
from tests.compression.models import make_model, value, weight

MODES = [QuantizeStatic(), QuantizeDynamic(), QuantizeWeightOnly(weight_bits=8), QuantizeFloat16()]


def two_products(first="w", middle="a", second="w2", result="y"):
    """`x` (n, 16) times the weight `first`, times the weight `second`."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", first], [middle], "one"),
        helper.make_node("MatMul", [middle, second], [result], "two"),
    ]
    weights = {first: weight(rng, 16, 16), second: weight(rng, 16, 16)}
    return make_model(nodes, [value("x", ["n", 16])], [value(result, ["n", 16])], weights)


def outputs(model, x):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(
    "names",
    [
        {"second": "w_quantized"},
        {"second": "w_scale"},
        {"second": "w_zero_point"},
        {"second": "w_DequantizeLinear_Output"},
        {"second": "x_QuantizeLinear_Output"},
        {"second": "a_scale"},
        {"middle": "x_scale"},
        {"middle": "w_quantized", "second": "w_quantized_scale"},
        {"first": "w/a b\n'\"", "second": "w/a b\n'\"_scale"},
    ],
    ids=str,
)
@pytest.mark.parametrize("spec", MODES, ids=lambda spec: spec.mode)
def test_names_of_the_model_do_not_mix_with_new_ones(names, spec, tmp_path):
    model = two_products(**names)
    x = np.random.default_rng(1).standard_normal((64, 16)).astype(np.float32)
    np.savez(tmp_path / "calibration.npz", x=x)
    dataset = open_dataset(DataSource(tmp_path / "calibration.npz"))
    result, _ = quantize(model, spec, Context(workdir=tmp_path, threads=1), dataset, seed=0)
    expected = outputs(model, x)
    noise = outputs(result, x) - expected
    assert 10 * np.log10(np.square(expected).sum() / np.square(noise).sum()) > 25


def test_only_what_collides_is_renamed():
    model = two_products(second="w_scale")
    model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(2, np.float32), "layer_scale"))
    make_room(model)
    assert [tensor.name for tensor in model.graph.initializer] == ["w", "w_scale.float", "layer_scale"]
    assert [list(node.input) for node in model.graph.node] == [["x", "w"], ["a", "w_scale.float"]]


def test_names_captured_by_subgraphs_follow():
    rng = np.random.default_rng(0)
    branches = {
        f"{branch}_branch": helper.make_graph(
            [helper.make_node(operator, ["w_scale"], [branch])], branch, [], [value(branch, [16, 16])]
        )
        for branch, operator in (("then", "Neg"), ("else", "Identity"))
    }
    nodes = [
        helper.make_node("If", ["condition"], ["s"], "if", **branches),
        helper.make_node("MatMul", ["x", "w"], ["a"], "product"),
        helper.make_node("MatMul", ["a", "s"], ["y"], "second"),
    ]
    weights = {"w": weight(rng, 16, 16), "w_scale": weight(rng, 16, 16), "condition": np.array(True)}
    model = make_model(nodes, [value("x", ["n", 16])], [value("y", ["n", 16])], weights)
    x = rng.standard_normal((4, 16)).astype(np.float32)
    expected = outputs(model, x)
    make_room(model)
    onnx.checker.check_model(model)
    np.testing.assert_array_equal(outputs(model, x), expected)
    inner = [node.input[0] for attribute in model.graph.node[0].attribute for node in attribute.g.node]
    assert inner == ["w_scale.float", "w_scale.float"]


@pytest.mark.parametrize("spec", [QuantizeDynamic(), QuantizeWeightOnly()], ids=lambda spec: spec.mode)
def test_name_of_an_output_is_not_changed(spec, tmp_path):
    with pytest.raises(StepFailed, match="which is what quantization calls a part of another") as error:
        quantize(two_products(result="w_scale"), spec, Context(workdir=tmp_path), None, seed=0)
    assert error.value.code == "name_taken"


def test_names_that_a_mode_does_not_need_are_no_obstacle(tmp_path):
    model = two_products(result="w_scale")
    result, _ = quantize(model, QuantizeFloat16(), Context(workdir=tmp_path), None, seed=0)
    x = np.random.default_rng(1).standard_normal((4, 16)).astype(np.float32)
    np.testing.assert_allclose(outputs(result, x), outputs(model, x), atol=0.02)


def test_a_weight_that_is_an_output_stays(tmp_path):
    model = two_products()
    model.graph.output.append(value("w", [16, 16]))
    result, details = quantize(model, QuantizeWeightOnly(), Context(workdir=tmp_path), None, seed=0)
    assert [entry.get("skipped") for entry in details["weights"]] == ["it is an output of the model", None]
    assert [node.op_type for node in result.graph.node] == ["MatMul", "MatMulNBits"]


def test_two_tensors_of_one_name_are_refused():
    model = two_products()
    check_unique(model)
    for name in ("a", "x"):
        changed = onnx.ModelProto.FromString(model.SerializeToString())
        changed.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(2, np.float32), name))
        with pytest.raises(StepFailed, match=f"has a tensor '{name}'"):
            check_unique(changed)
