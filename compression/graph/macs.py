"""Multiply-accumulate operations, from shapes alone."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping

import onnx

from compression.graph import shapes, walk
from compression.graph.shapes import KnownShape

_RECURRENT = ("RNN", "GRU", "LSTM")


class _Unknown(Exception):
    """A shape that the count needs is not fixed."""


class _Shapes:
    def __init__(self, known: Mapping[str, KnownShape]) -> None:
        self._known = known

    def __getitem__(self, name: str) -> tuple[int, ...]:
        found = self._known.get(name)
        if found is None:
            raise _Unknown
        lengths = tuple(axis for axis in found.axes if axis is not None)
        if len(lengths) != len(found.axes):
            raise _Unknown
        return lengths


def count_macs(model: onnx.ModelProto) -> int | None:
    """Multiply-accumulates of convolutions, matrix products and recurrent layers for one sample.

    An open first axis of an input counts as 1. A first axis that is fixed at the same length in all inputs and outputs
    is taken for the batch, and the count divided by it; with recurrent layers it may be time, and is not. None where
    a shape is not known well enough, or where products hide in operators or subgraphs that cannot be counted.
    """
    total = macs_of(model.graph.node, shapes.infer(model, one_sample=True))
    return None if total is None else total // fixed_batch(model)


def macs_of(nodes: Iterable[onnx.NodeProto], known: Mapping[str, KnownShape]) -> int | None:
    """Multiply-accumulates of some nodes for values of these shapes; None where they cannot be counted."""
    lengths = _Shapes(known)
    try:
        return sum(_macs(node, lengths) for node in nodes)
    except (_Unknown, IndexError, ValueError):
        return None


def fixed_batch(model: onnx.ModelProto) -> int:
    """The length of the first axis where it is the same in all inputs and outputs, else 1."""
    if any(node.op_type in _RECURRENT for node in model.graph.node):
        return 1
    stored = {tensor.name for tensor in model.graph.initializer}
    first = set()
    for value in (*model.graph.input, *model.graph.output):
        if value.name not in stored:
            axes = value.type.tensor_type.shape.dim
            first.add(axes[0].dim_value if axes else 0)
    return max(first) if len(first) == 1 and max(first) > 0 else 1


def _macs(node: onnx.NodeProto, known: _Shapes) -> int:
    count = _COUNTERS.get(node.op_type)
    if count is not None:
        return count(node, known)
    if node.op_type in _UNCOUNTED:
        raise _Unknown
    for graph in walk.subgraphs(node):
        # How often a branch or a loop's body runs is not written in the graph.
        if any(inner.op_type in _COUNTERS or inner.op_type in _UNCOUNTED for inner in graph.node):
            raise _Unknown
    return 0


def _convolution(weight: int) -> Callable[[onnx.NodeProto, _Shapes], int]:
    """Each output element is a dot product over (channels / groups) x kernel."""
    return lambda node, known: math.prod(known[node.output[0]]) * math.prod(known[node.input[weight]][1:])


def _transposed_convolution(node: onnx.NodeProto, known: _Shapes) -> int:
    """Each input element is spread over (output channels / groups) x kernel."""
    return math.prod(known[node.input[0]]) * math.prod(known[node.input[1]][1:])


def _product(left: int = 0) -> Callable[[onnx.NodeProto, _Shapes], int]:
    """Each output element is a dot product over the last axis of the left operand."""
    return lambda node, known: math.prod(known[node.output[0]]) * known[node.input[left]][-1]


def _gemm(node: onnx.NodeProto, known: _Shapes) -> int:
    transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
    return math.prod(known[node.output[0]]) * known[node.input[0]][0 if transposed else -1]


def _einsum(node: onnx.NodeProto, known: _Shapes) -> int:
    """Each choice of all indices is one product for every operand after the first; one operand alone only adds."""
    (equation,) = (attribute.s.decode() for attribute in node.attribute if attribute.name == "equation")
    terms = equation.replace(" ", "").partition("->")[0].split(",")
    sizes: dict[str, int] = {}
    for name, term in zip(node.input, terms, strict=True):
        shape = known[name]
        before, dots, after = term.partition("...")
        # The axes under an ellipsis are aligned at their last one, as in broadcasting.
        under = [f"...{place}" for place in range(len(shape) - len(before) - len(after), 0, -1)] if dots else []
        for index, length in zip([*before, *under, *after], shape, strict=True):
            sizes[index] = max(length, sizes.get(index, 1))
    return math.prod(sizes.values()) * (len(terms) - 1)


def _recurrent(node: onnx.NodeProto, known: _Shapes) -> int:
    """Every step of every sample multiplies by the whole of W (input) and R (state), all gates and directions."""
    steps, batch = known[node.input[0]][:2]
    return steps * batch * (math.prod(known[node.input[1]]) + math.prod(known[node.input[2]]))


_COUNTERS: dict[str, Callable[[onnx.NodeProto, _Shapes], int]] = {
    "Conv": _convolution(1),
    "ConvInteger": _convolution(1),
    "QLinearConv": _convolution(3),
    "ConvTranspose": _transposed_convolution,
    "MatMul": _product(),
    "MatMulInteger": _product(),
    "QLinearMatMul": _product(),
    "MatMulNBits": _product(),
    "DynamicQuantizeMatMul": _product(),
    "MatMulIntegerToFloat": _product(),
    "FusedMatMul": _product(),
    "Gemm": _gemm,
    "Einsum": _einsum,
} | dict.fromkeys(_RECURRENT, _recurrent)
_UNCOUNTED = frozenset(
    {"Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention", "QGemm", "QMoE", "MoE"}
    | {"DynamicQuantizeLSTM", "FusedConv", "NhwcConv", "FusedGemm", "DeformConv", "STFT"}
)
