"""Summaries, parameter counts and MACs against numbers computed by hand."""

from __future__ import annotations

import numpy as np
import pytest
from onnx import TensorProto, helper

from compression.graph.inspect import inspect_model, summarize
from tests.compression import models


def summary(model):
    return summarize(model, 0, 0)


def one_node(node, inputs, outputs, weights, **options):
    return models.make_model([node], inputs, outputs, weights, **options)


def test_the_cnn(tmp_path):
    path = models.save(models.cnn(), tmp_path / "m.onnx")
    found = inspect_model(path)
    assert found.opsets == {"ai.onnx": 21}
    assert found.operators == {"Conv": 2, "Flatten": 1, "Gemm": 1, "MaxPool": 1, "Relu": 2}
    assert found.nodes == 7
    assert found.parameters == (8 * 9 + 8) + (16 * 8 * 9 + 16) + (2560 + 10)
    assert found.nonzero_parameters == found.parameters
    assert found.parameter_bytes == 4 * found.parameters
    # 8x8 outputs x 8 channels x 9 taps; x 16 channels x 72 taps; 256 x 10
    assert found.macs == 64 * 8 * 9 + 64 * 16 * 72 + 2560
    assert (found.inputs[0].name, found.inputs[0].dtype, found.inputs[0].shape) == ("x", "float32", ("batch", 1, 8, 8))
    assert found.outputs[0].shape == ("batch", 10)
    assert (found.file_bytes, found.external_data_bytes) == (path.stat().st_size, 0)
    assert found.quantized is False
    assert found.producer == "tests"


def test_zeros_are_counted():
    model = models.mlp()
    values = models.weights_of(model)["w1"].copy()
    values[:10] = 0
    model.graph.initializer[0].raw_data = values.tobytes()
    found = summary(model)
    assert found.parameters - found.nonzero_parameters == 10 * 128


def test_macs_of_a_grouped_strided_convolution():
    node = helper.make_node("Conv", ["x", "w"], ["y"], group=2, strides=[2, 2], pads=[1, 1, 1, 1])
    model = one_node(
        node,
        [models.value("x", ["b", 4, 8, 8])],
        [models.value("y", ["b", 6, 4, 4])],
        {"w": np.ones((6, 2, 3, 3), np.float32)},
    )
    assert summary(model).macs == 16 * 6 * 2 * 9


def test_macs_of_a_transposed_convolution():
    node = helper.make_node("ConvTranspose", ["x", "w"], ["y"], strides=[2, 2])
    model = one_node(
        node,
        [models.value("x", ["b", 3, 4, 4])],
        [models.value("y", ["b", 5, 8, 8])],
        {"w": np.ones((3, 5, 2, 2), np.float32)},
    )
    assert summary(model).macs == 16 * 3 * 5 * 4


@pytest.mark.parametrize("transposed", [0, 1])
def test_macs_of_gemm(transposed):
    shape = (7, 5) if transposed else (5, 7)
    node = helper.make_node("Gemm", ["x", "w"], ["y"], transB=transposed)
    model = one_node(
        node, [models.value("x", ["b", 5])], [models.value("y", ["b", 7])], {"w": np.ones(shape, np.float32)}
    )
    assert summary(model).macs == 35


def test_macs_of_a_batched_product_of_activations():
    node = helper.make_node("MatMul", ["q", "k"], ["y"])
    model = one_node(
        node,
        [models.value("q", ["b", 4, 16, 8]), models.value("k", ["b", 4, 8, 16])],
        [models.value("y", ["b", 4, 16, 16])],
        {},
    )
    assert summary(model).macs == 4 * 16 * 16 * 8


@pytest.mark.parametrize(
    ("equation", "shapes", "expected"),
    [
        ("bij,bjk->bik", [(1, 3, 4), (1, 4, 5)], 3 * 4 * 5),
        ("b h i d, b h j d -> b h i j", [(1, 2, 3, 4), (1, 2, 6, 4)], 2 * 3 * 6 * 4),
        ("ij,jk", [(3, 4), (4, 5)], 60),
        ("...ij,...jk->...ik", [(1, 7, 3, 4), (7, 4, 5)], 7 * 3 * 4 * 5),
        ("...i,...->...i", [(1, 7, 3), (7,)], 7 * 3),
        ("bii->b", [(1, 3, 3)], 0),
        ("bi,ij,jk->bk", [(1, 2), (2, 3), (3, 4)], 2 * 2 * 3 * 4),
    ],
)
def test_macs_of_einsum(equation, shapes, expected):
    """By hand: the product of the lengths of all indices."""
    names = [f"x{index}" for index in range(len(shapes))]
    node = helper.make_node("Einsum", names, ["y"], equation=equation)
    inputs = [models.value(name, shape) for name, shape in zip(names, shapes, strict=True)]
    output = np.einsum(equation, *(np.ones(shape) for shape in shapes))
    assert summary(one_node(node, inputs, [models.value("y", output.shape)], {})).macs == expected


def test_macs_of_an_lstm():
    weights = {"w": np.ones((1, 32, 6), np.float32), "r": np.ones((1, 32, 8), np.float32)}
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], hidden_size=8)
    model = one_node(node, [models.value("x", [5, 1, 6])], [models.value("y", [5, 1, 1, 8])], weights)
    assert summary(model).macs == 5 * (32 * 6 + 32 * 8)


def test_macs_through_a_computed_reshape():
    """Exporters flatten an open batch by Shape, Gather and Concat; the lengths have to be followed through."""
    nodes = [
        helper.make_node("Shape", ["x"], ["s"]),
        helper.make_node("Gather", ["s", "zero"], ["n"], axis=0),
        helper.make_node("Concat", ["n", "rest"], ["target"], axis=0),
        helper.make_node("Reshape", ["x", "target"], ["f"]),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    weights = {
        "zero": np.array([0], np.int64),
        "rest": np.array([-1], np.int64),
        "w": np.ones((12, 5), np.float32),
    }
    model = models.make_model(nodes, [models.value("x", ["b", 3, 4])], [models.value("y", ["b", 5])], weights)
    assert summary(model).macs == 60


def test_macs_unknown_where_a_length_other_than_the_batch_is_open():
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    model = one_node(
        node,
        [models.value("x", ["b", "sequence", 8])],
        [models.value("y", ["b", "sequence", 4])],
        {"w": np.ones((8, 4), np.float32)},
    )
    assert summary(model).macs is None


def test_macs_of_one_sample_of_a_fixed_batch():
    assert summary(models.cnn(batch=4)).macs == summary(models.cnn()).macs


def quantized_matmul(zero_point):
    """x @ dequantize(int8 weight): QDQ as exporters write it."""
    weights = {
        "w": np.array([[0, 1], [3, 3], [0, -5]], np.int8),
        "scale": np.array([0.1, 0.2], np.float32),
        "zero": np.array(zero_point, np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["d"], axis=1),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    return models.make_model(nodes, [models.value("x", ["b", 3])], [models.value("y", ["b", 2])], weights)


@pytest.mark.parametrize(("zero_point", "nonzero"), [([0, 0], 4), ([3, 3], 4), ([0, -5], 3)])
def test_quantized_weights_count_once_and_zero_is_the_zero_point(zero_point, nonzero):
    found = summary(quantized_matmul(zero_point))
    assert (found.parameters, found.nonzero_parameters) == (6, nonzero)
    assert found.parameter_bytes == 6 + 2 * 4 + 2  # scales and zero points
    assert found.macs == 6
    assert found.quantized


def test_packed_4_bit_weights():
    # Two rows of K = 16 in one block; low bits first; 8 stands for zero. Row 0: 8 and 9 in turn; row 1: all zero.
    packed = np.array([[[0x98] * 8], [[0x88] * 8]], np.uint8)
    weights = {"w": packed, "scale": np.ones((2, 1), np.float32)}
    node = helper.make_node(
        "MatMulNBits", ["x", "w", "scale"], ["y"], "q", domain="com.microsoft", K=16, N=2, bits=4, block_size=16
    )
    model = one_node(
        node, [models.value("x", ["b", 16])], [models.value("y", ["b", 2])], weights, domains=("com.microsoft",)
    )
    found = summary(model)
    assert (found.parameters, found.nonzero_parameters, found.parameter_bytes) == (32, 8, 16 + 2 * 4)
    assert found.macs == 32
    assert found.operators == {"com.microsoft::MatMulNBits": 1}


def test_scales_of_dynamically_quantized_weights_are_no_parameters():
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "x_scale", "x_zero"]),
        helper.make_node("MatMulInteger", ["q", "w", "x_zero"], ["i"]),
        helper.make_node("Cast", ["i"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["x_scale", "w_scale"], ["scale"]),
        helper.make_node("Mul", ["f", "scale"], ["m"]),
        helper.make_node("Add", ["m", "bias"], ["y"]),
    ]
    weights = {
        "w": np.array([[0, 1], [3, 3], [0, -5]], np.int8),
        "w_scale": np.array([0.1, 0.2], np.float32),
        "bias": np.array([1, 2], np.float32),
    }
    model = models.make_model(nodes, [models.value("x", ["b", 3])], [models.value("y", ["b", 2])], weights)
    found = summary(model)
    assert (found.parameters, found.nonzero_parameters, found.macs) == (6 + 2, 4 + 2, 6)


def test_unknown_rank_and_other_kinds_of_values():
    node = helper.make_node("SequenceAt", ["s", "i"], ["y"])
    sequence = helper.make_tensor_sequence_value_info("s", TensorProto.FLOAT, ["n"])
    output = models.value("y", ["n"])
    output.type.tensor_type.ClearField("shape")
    model = one_node(node, [sequence], [models.value("y", ["n"])], {"i": np.array(0, np.int64)})
    model.graph.output[0].CopyFrom(output)
    found = summary(model)
    assert (found.inputs[0].dtype, found.inputs[0].shape) == ("sequence", None)
    assert found.outputs[0].shape is None
    assert (found.parameters, found.macs) == (0, 0)
