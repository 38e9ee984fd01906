"""Small models with every kind of weight, and what their quantized forms stand for, decoded independently."""

from __future__ import annotations

import math

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tests.compression.models import make_model, value, weight


def conv_net(group=1, opset=21):
    """Conv 3x3 (stride 2, dilation 1), Conv in groups, ConvTranspose; input (n, 4, 9, 9)."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Conv", ["x", "first"], ["a"], "conv1", strides=[2, 2], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Conv", ["b", "grouped"], ["c"], "conv2", group=group, dilations=[2, 1], pads=[2, 1, 2, 1]),
        helper.make_node("ConvTranspose", ["c", "up"], ["y"], "up", strides=[2, 2]),
    ]
    weights = {
        "first": weight(rng, 8, 4, 3, 3),
        "grouped": weight(rng, 8, 8 // group, 3, 3),
        "up": weight(rng, 8, 3, 2, 2),
    }
    return make_model(nodes, [value("x", ["n", 4, 9, 9])], [value("y", ["n", 3, 10, 10])], weights, opset=opset)


def lstm():
    """An LSTM over (5, n, 12) with 8 units."""
    rng = np.random.default_rng(0)
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], "lstm", hidden_size=8)
    weights = {"w": weight(rng, 1, 32, 12), "r": weight(rng, 1, 32, 8)}
    return make_model([node], [value("x", [5, "n", 12])], [value("y", [5, 1, "n", 8])], weights)


def stack():
    """A product with a stack of matrices, and one from the left."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("MatMul", ["x", "stack"], ["h"], "stacked"),
        helper.make_node("MatMul", ["left", "h"], ["y"], "from_left"),
    ]
    weights = {"stack": weight(rng, 3, 33, 21), "left": weight(rng, 7, 5)}
    return make_model(nodes, [value("x", [3, 5, 33])], [value("y", [3, 7, 21])], weights)


def tied(opset=21):
    """A matrix whose transpose is multiplied by twice, once by Gemm."""
    rng = np.random.default_rng(0)
    nodes = [
        helper.make_node("Transpose", ["w"], ["t"], "turn", perm=[1, 0]),
        helper.make_node("MatMul", ["x", "t"], ["h"], "first"),
        helper.make_node("Gemm", ["h", "w", "b"], ["g"], "second", transB=1),
        helper.make_node("Relu", ["g"], ["y"], "relu"),
    ]
    weights = {"w": weight(rng, 40, 40), "b": weight(rng, 40)}
    return make_model(nodes, [value("x", ["n", 40])], [value("y", ["n", 40])], weights, opset=opset)


def dequantized(model: onnx.ModelProto, result: onnx.ModelProto) -> onnx.ModelProto:
    """The float model with the weights that the codes of `result` stand for, read by nothing but bits and NumPy."""
    stored = {tensor.name: tensor for tensor in result.graph.initializer}
    nodes = {name: node for node in result.graph.node for name in node.input if name.endswith("_quantized")}
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    for tensor in copy.graph.initializer:
        node = nodes.get(f"{tensor.name}_quantized")
        if node is not None:
            values = _decode(node, stored, tensor)
            tensor.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(values, np.float32), tensor.name))
    return copy


def _decode(node, stored, original):
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    name, shape = original.name, tuple(original.dims)
    codes, scale = stored[f"{name}_quantized"], numpy_helper.to_array(stored[f"{name}_scale"]).astype(np.float64)
    zero = stored.get(f"{name}_zero_point")
    block = attributes.get("block_size")
    if node.op_type == "DequantizeLinear":
        bits = {"INT2": 2, "INT4": 4, "INT8": 8}[TensorProto.DataType.Name(codes.data_type).removeprefix("U")]
        signed = not TensorProto.DataType.Name(codes.data_type).startswith("U")
        numbers = _numbers(codes.raw_data, bits, math.prod(codes.dims), signed).reshape(codes.dims)
        zeros = np.zeros(scale.shape)
        if zero is not None:
            zeros = _numbers(zero.raw_data, bits, scale.size, signed).reshape(scale.shape)
        axis = attributes["axis"]
        if block is None:
            spread = [1] * numbers.ndim
            spread[axis] = -1
            return ((numbers - zeros.reshape(spread)) * scale.reshape(spread)).reshape(shape)
        take = range(codes.dims[axis])
        scale, zeros = (np.repeat(one, block, axis).take(take, axis) for one in (scale, zeros))
        return ((numbers - zeros) * scale).reshape(shape)
    bits = attributes["bits"]
    rows, groups = scale.shape
    numbers = _numbers(codes.raw_data, bits, len(codes.raw_data) * 8 // bits, signed=False).reshape(rows, -1)
    zeros = np.full(scale.shape, 1 << (bits - 1), np.float64)
    if zero is not None:
        padded = len(zero.raw_data) * 8 // bits // rows
        zeros = _numbers(zero.raw_data, bits, rows * padded, signed=False).reshape(rows, padded)[:, :groups]
    columns = attributes.get("K", shape[-1])
    scale, zeros = (np.repeat(one, block, 1)[:, :columns] for one in (scale, zeros))
    values = (numbers[:, :columns] - zeros) * scale
    # One output a row; the float matrix has its outputs in columns, save where it is transposed or looked up in.
    return values if values.shape == shape else values.T


def _numbers(raw, bits, count, signed):
    """Whole numbers of a few bits each from bytes, the first in the lowest bits."""
    spread = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little").reshape(-1, bits)[:count]
    numbers = (spread.astype(np.int64) << np.arange(bits)).sum(1)
    return np.where(numbers >= 1 << (bits - 1), numbers - (1 << bits), numbers) if signed else numbers
