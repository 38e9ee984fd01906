"""Counting weights, in float graphs and in quantized ones alike.

A quantized graph stores integers plus the scales and zero points that give them meaning. The integers are the
parameters; scales and zero points take bytes and are no parameters.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto

from compression.graph import walk
from compression.graph.load import FLOAT_TYPES
from compression.graph.stored import Stored, pieces, values
from compression.graph.tensors import element_count, is_external, stored_bytes


@dataclass(frozen=True)
class _Layout:
    """Where an operator takes a quantized weight: input positions, and the axis of one scale per channel."""

    weight: int
    zero_point: int
    axis: int = 0


# Every other input of these operators that is stored is a scale, a zero point or an activation's.
_WEIGHTS: dict[str, tuple[_Layout, ...]] = {
    "DequantizeLinear": (_Layout(0, 2),),
    "QLinearConv": (_Layout(3, 5), _Layout(8, -1)),
    "ConvInteger": (_Layout(1, 3),),
    "QLinearMatMul": (_Layout(3, 5, -1),),
    "MatMulInteger": (_Layout(1, 3, -1),),
    "DynamicQuantizeMatMul": (_Layout(1, 3, -1),),
    "MatMulIntegerToFloat": (_Layout(1, 5, -1),),
    "QGemm": (_Layout(3, 5), _Layout(6, -1)),
    "MatMulNBits": (_Layout(1, 3),),
    "GatherBlockQuantized": (_Layout(0, 3),),
    "DynamicQuantizeLSTM": (_Layout(1, -1), _Layout(2, -1)),
}
# Inputs of quantized operators that are activations or stay float: biases, initial states, peepholes.
_FLOAT_PARAMETERS = {
    "DynamicQuantizeLSTM": (0, 3, 5, 6, 7),
    "DynamicQuantizeMatMul": (0, 4),
    "MatMulIntegerToFloat": (0, 6),
    "MatMulNBits": (0, 5),
    "GatherBlockQuantized": (0, 1),
}
QUANTIZED_OPERATORS = frozenset(_WEIGHTS) | {"QuantizeLinear", "DynamicQuantizeLinear"}
# Packed codes are counted so many bytes at a time.
_PIECE = 1 << 22


@dataclass(frozen=True)
class ParameterCount:
    """Elements, elements that are not zero, and bytes of all weights (with their scales and zero points)."""

    elements: int
    nonzero: int
    bytes: int


def count_parameters(model: onnx.ModelProto) -> ParameterCount:
    """Count the weights of a canonical or quantized model; each stored tensor counts once however often it is used."""
    elements = nonzero = size = 0
    stored = {tensor.name: tensor for graph, _ in walk.graphs(model) for tensor in graph.initializer}
    quantized = dict(_quantized(model, stored))
    beside = auxiliary(model) - quantized.keys()
    for tensor in stored.values():
        if tensor.name in quantized:
            node, layout = quantized[tensor.name]
            if _is_packed(node, tensor):
                count, kept = _packed(node, tensor, stored)
            else:
                count, kept = element_count(tensor), _nonzero_integers(node, layout, tensor, stored)
        elif tensor.name in beside:
            count = kept = 0
        elif tensor.data_type in FLOAT_TYPES:
            count, kept = element_count(tensor), _nonzero(Stored(tensor))
        else:
            continue
        elements, nonzero, size = elements + count, nonzero + kept, size + stored_bytes(tensor)
    return ParameterCount(elements, nonzero, size)


def _nonzero(stored: Stored) -> int:
    starts = range(0, stored.size, _PIECE)
    return sum(int(np.count_nonzero(stored.part(at, min(at + _PIECE, stored.size)))) for at in starts)


def _quantized(
    model: onnx.ModelProto, stored: dict[str, onnx.TensorProto]
) -> Iterator[tuple[str, tuple[onnx.NodeProto, _Layout]]]:
    # Rows of a quantized embedding are looked up as integers, and get their scale afterwards.
    tables = {node.output[0]: node.input[0] for node in walk.nodes(model) if node.op_type == "Gather"}
    for node in walk.nodes(model):
        for layout in _WEIGHTS.get(node.op_type, ()):
            name = node.input[layout.weight] if layout.weight < len(node.input) else ""
            name = tables.get(name, name)
            if name in stored and stored[name].data_type not in FLOAT_TYPES:
                yield name, (node, layout)


def auxiliary(model: onnx.ModelProto) -> set[str]:
    """Names of inputs of quantized operators that are no weights of their own: scales, zero points, packed weights."""
    found: set[str] = set()
    run_time_scales = {
        node.output[1] for node in walk.nodes(model) if node.op_type == "DynamicQuantizeLinear" and len(node.output) > 1
    }
    for node in walk.nodes(model):
        if node.op_type in QUANTIZED_OPERATORS:
            kept = _FLOAT_PARAMETERS.get(node.op_type, (0,))
            found.update(name for position, name in enumerate(node.input) if name and position not in kept)
        elif node.op_type == "Mul" and run_time_scales.intersection(node.input):
            # Dynamic quantization multiplies the activation's scale, known at run time, by the weight's.
            found.update(node.input)
    return found


def _nonzero_integers(
    node: onnx.NodeProto, layout: _Layout, tensor: onnx.TensorProto, stored: dict[str, onnx.TensorProto]
) -> int:
    """Weights that do not stand for zero, which is what the zero point stands for."""
    position = layout.zero_point
    name = node.input[position] if 0 <= position < len(node.input) else ""
    if name not in stored and is_external(tensor):
        bits = max(1, 8 * stored_bytes(tensor) // element_count(tensor))
        return sum(int(np.count_nonzero(_unpack(np.frombuffer(one, np.uint8), bits))) for one in pieces(tensor))
    codes = values(tensor)
    if name not in stored:
        return int(np.count_nonzero(codes))
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    zero = values(stored[name])
    if zero.size > 1:
        axis = attributes.get("axis", 1) if node.op_type == "DequantizeLinear" else layout.axis
        zero = _aligned(zero, codes.shape, axis, attributes.get("block_size", 0))
    return int(np.count_nonzero(codes != zero))


def _aligned(zero: npt.NDArray[np.generic], shape: tuple[int, ...], axis: int, block: int) -> npt.NDArray[np.generic]:
    """Zero points, one for each channel or block along `axis`, in a shape that broadcasts against the weights."""
    if block:
        return np.repeat(zero, block, axis=axis).take(range(shape[axis]), axis=axis)
    lengths = [1] * len(shape)
    lengths[axis] = -1
    return zero.reshape(lengths)


def _is_packed(node: onnx.NodeProto, tensor: onnx.TensorProto) -> bool:
    """Whether the bytes of a tensor hold several weights each, or may."""
    return node.op_type == "MatMulNBits" or (
        node.op_type == "GatherBlockQuantized" and tensor.data_type == TensorProto.UINT8
    )


def _packed(node: onnx.NodeProto, tensor: onnx.TensorProto, stored: dict[str, onnx.TensorProto]) -> tuple[int, int]:
    """Weights and non-zero weights of codes in bytes, low bits first.

    MatMulNBits has (N, K/block, block*bits/8) bytes and fills its last block; GatherBlockQuantized has (entries,
    width*bits/8).
    """
    attributes = {attribute.name: attribute.i for attribute in node.attribute}
    block, bits = attributes.get("block_size", 128), attributes.get("bits", 4)
    rows = int(tensor.dims[0])
    packed = Stored(tensor)
    width = packed.size // rows
    columns = attributes.get("K", width * 8 // bits)
    blocks = math.ceil(columns / block)
    zero: npt.NDArray[np.generic] = np.full((rows, blocks), 1 << (bits - 1), np.uint8)
    name = node.input[3] if len(node.input) > 3 else ""
    if name in stored and stored[name].data_type == TensorProto.UINT8:
        zero = _unpack(values(stored[name]).reshape(rows, -1), bits)[:, :blocks]
    nonzero = 0
    at_once = max(1, _PIECE // max(1, width))
    for start in range(0, rows, at_once):
        stop = min(start + at_once, rows)
        codes = _unpack(packed.part(start * width, stop * width).reshape(-1, width), bits)[:, :columns]
        zeros = np.repeat(zero[start : start + at_once], block, axis=1)[:, :columns]
        nonzero += int(np.count_nonzero(codes != zeros))
    return rows * columns, nonzero


def _unpack(packed: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Bytes to the numbers that they hold, along the last axis."""
    if bits == 8:
        return packed
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    spread = (packed[..., None] >> shifts) & np.uint8((1 << bits) - 1)
    return spread.reshape(*packed.shape[:-1], -1)
