"""Matrix products."""

from __future__ import annotations

from typing import Any

import torch
from torch import fx, nn

from compression.graph.operators.bindings import AsStored, Flattened, Layout, Transposed
from compression.graph.operators.call import OperatorCall
from compression.graph.operators.dtypes import UNSIGNED, widened
from compression.graph.operators.emitter import weight_of
from compression.graph.operators.registry import operator
from compression.graph.operators.weight_store import StoredWeight


def _linear(
    op: OperatorCall, x: Any, weight: StoredWeight, layout: Layout, bias: StoredWeight | None, bias_layout: Layout
) -> Any:
    """An `nn.Linear` over the last axis that holds the initializers."""
    (values,) = op.parameters(weight, layout)
    layer = nn.Linear(values.shape[1], values.shape[0], bias=bias is not None, device="meta")
    layer.weight = values
    if bias is not None:
        (layer.bias,) = op.parameters(bias, bias_layout)
    return op.layer(layer, x, named_after=(weight, bias))


@operator("Gemm")
def gemm(op: OperatorCall) -> Any:
    """Alpha * A' B' + beta * C: an `nn.Linear` where B is a stored weight."""
    alpha, beta = op.attribute("alpha", 1.0), op.attribute("beta", 1.0)
    x = op.tensor(0)
    if op.attribute("transA", 0):
        x = op.call(torch.t, x)
    layout: Layout = AsStored() if op.attribute("transB", 0) else Transposed()
    weight = op.stored(1, layout)
    if weight is None:
        other = op.tensor(1)
        y = op.call(torch.matmul, x, op.call(torch.t, other) if op.attribute("transB", 0) else other)
    else:
        bias, bias_layout = _bias(op) if alpha == beta == 1 else (None, AsStored())
        y = _linear(op, x, weight, layout, bias, bias_layout)
        if bias is not None:
            return y
    if alpha != 1:
        y = op.call(scaled, y, alpha)
    if not op.has(2) or beta == 0:
        return y
    c = op.tensor(2)
    return op.call(torch.add, y, c if beta == 1 else op.call(scaled, c, beta))


def scaled(x: torch.Tensor, factor: float) -> torch.Tensor:
    """Multiply by a factor, which for integers is taken as one."""
    return x * factor if x.dtype.is_floating_point else x * int(factor)


def _bias(op: OperatorCall) -> tuple[StoredWeight | None, Layout]:
    """The stored vector that a Gemm adds to every row."""
    shape, weight = op.shape(2), op.shape(1)
    if shape is None or weight is None:
        return None, AsStored()
    width = weight[0] if op.attribute("transB", 0) else weight[1]
    if shape == [width]:
        return op.stored(2), AsStored()
    if shape == [1, width]:
        return op.stored(2, Flattened(1)), Flattened(1)
    return None, AsStored()


@operator("MatMul")
def matmul(op: OperatorCall) -> Any:
    """`nn.Linear` where the right side is a stored matrix, together with an Add that alone follows."""
    x = op.tensor(0)
    weight, layout = _matrix(op)
    if weight is not None and op.rank(0) != 1:
        follower = _added_vector(op)
        y = _linear(op, x, weight, layout, follower[1] if follower else None, AsStored())
        if follower:
            op.builder.claim(follower[0], y)
        return y
    function = torch.matmul if op.is_float(0) else integer_matmul
    return op.call(function, x, op.tensor(1))


def _matrix(op: OperatorCall) -> tuple[StoredWeight | None, Layout]:
    """The stored matrix on the right side, also behind a Transpose."""
    if op.rank(1) != 2:
        return None, AsStored()
    weight = op.stored(1, Transposed())
    if weight is not None:
        return weight, Transposed()
    right = op.tensor(1)
    if isinstance(right, fx.Node) and right.target is torch.permute and right.args[1] == [1, 0]:
        return weight_of(right.args[0]), AsStored()
    return None, AsStored()


def _added_vector(op: OperatorCall) -> tuple[int, StoredWeight] | None:
    """Index of the Add that alone reads the product, and the stored vector that it adds to every row."""
    found = op.builder.sole_reader(op.node.output[0])
    if found is None or found[1].op_type != "Add" or found[1].domain not in ("", "ai.onnx"):
        return None
    index, reader = found
    width = op.shape(1)
    for position, name in enumerate(reader.input):
        bias = op.builder.weight(reader, position) if name != op.node.output[0] else None
        if bias is not None and width and list(bias.values.shape) == [width[1]]:
            return index, bias
    return None


def integer_matmul(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Product of integer matrices, in their own type."""
    if a.dtype in UNSIGNED or not a.dtype.is_floating_point:
        return torch.matmul(widened(a).to(torch.int64), widened(b).to(torch.int64)).to(a.dtype)
    return torch.matmul(a, b)


@operator("Einsum")
def einsum(op: OperatorCall) -> Any:
    """Torch's notation is ONNX's, but for spaces and the dots of `...`, which torch takes only without spaces."""
    equation = op.attribute("equation").replace(" ", "")
    return op.call(torch.einsum, equation, *op.tensors())
