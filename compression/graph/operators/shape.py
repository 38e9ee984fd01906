"""Shapes: asking for them and changing them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import onnx
import torch
from onnx import numpy_helper

from compression.graph.operators.call import OperatorCall, Rejected
from compression.graph.operators.dtypes import tensor_from_proto, torch_dtype, widened
from compression.graph.operators.registry import operator


def shape_of(x: torch.Tensor, start: int, end: int | None) -> torch.Tensor:
    """Lengths of the axes from `start` to `end`, counted as Python slices are, on the CPU."""
    return torch.tensor(x.shape[start:end], dtype=torch.int64)


def element_count(x: torch.Tensor) -> torch.Tensor:
    return torch.tensor(x.numel())


@operator("Shape")
def shape_(op: OperatorCall) -> Any:
    return op.from_shape(shape_of, op.tensor(0), op.attribute("start", 0), op.attribute("end"))


@operator("Size")
def size(op: OperatorCall) -> Any:
    return op.from_shape(element_count, op.tensor(0))


def reshape(x: torch.Tensor, shape: Sequence[int], allow_zero: bool) -> torch.Tensor:
    """Reshape where 0 keeps the axis at its place, unless zeros are allowed to mean themselves."""
    sizes = [x.shape[axis] if size == 0 and not allow_zero else size for axis, size in enumerate(shape)]
    return x.reshape(sizes)


@operator("Reshape")
def reshape_(op: OperatorCall) -> Any:
    shape = op.ints(1) if op.has(1) else op.attribute("shape")
    if isinstance(shape, list) and 0 not in shape:
        return op.call(torch.reshape, op.tensor(0), shape)
    return op.call(reshape, op.tensor(0), shape, bool(op.attribute("allowzero", 0)))


def flatten_to_matrix(x: torch.Tensor, axis: int) -> torch.Tensor:
    """Two axes: those before `axis` together and the rest together."""
    rows = x.shape[: axis if axis >= 0 else x.dim() + axis].numel()
    return x.reshape(rows, -1) if x.numel() else x.reshape(rows, x.shape[axis:].numel())


@operator("Flatten")
def flatten(op: OperatorCall) -> Any:
    axis = op.attribute("axis", 1)
    return (
        op.call(torch.flatten, op.tensor(0), 1)
        if axis == 1 and (op.rank(0) or 0) > 1
        else op.call(flatten_to_matrix, op.tensor(0), axis)
    )


def reverse_axes(x: torch.Tensor) -> torch.Tensor:
    return x.permute(*reversed(range(x.dim())))


@operator("Transpose")
def transpose(op: OperatorCall) -> Any:
    order = op.attribute("perm")
    return op.call(reverse_axes, op.tensor(0)) if order is None else op.call(torch.permute, op.tensor(0), order)


def squeeze(x: torch.Tensor, axes: Sequence[int] | None) -> torch.Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@operator("Squeeze")
def squeeze_(op: OperatorCall) -> Any:
    return op.call(squeeze, op.tensor(0), op.axes(1))


def unsqueeze(x: torch.Tensor, axes: Sequence[int]) -> torch.Tensor:
    """New axes at the given places of the result."""
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Unsqueeze")
def unsqueeze_(op: OperatorCall) -> Any:
    axes = op.axes(1)
    if isinstance(axes, list) and len(axes) == 1:
        return op.call(torch.unsqueeze, op.tensor(0), axes[0])
    return op.call(unsqueeze, op.tensor(0), axes)


@operator("Concat")
def concat(op: OperatorCall) -> Any:
    return op.call(torch.cat, op.tensors(), op.attribute("axis", 1))


def split_evenly(x: torch.Tensor, parts: int, axis: int) -> list[torch.Tensor]:
    """Equal parts, the last one shorter where the length does not divide; the number of parts is kept."""
    size = -(-x.shape[axis] // parts)
    found = list(x.split(size, axis)) if size else [x]
    return [*found, *[x.narrow(axis, 0, 0)] * (parts - len(found))]


@operator("Split")
def split(op: OperatorCall) -> Any:
    axis = op.attribute("axis", 0)
    sizes = op.ints(1) if op.has(1) else op.attribute("split")
    count = len(op.node.output)
    parts = (
        op.call(split_evenly, op.tensor(0), op.attribute("num_outputs", count), axis)
        if sizes is None
        else op.call(torch.split, op.tensor(0), sizes, axis)
    )
    return [op.item(parts, index) if op.wants(index) else None for index in range(count)]


def expand(x: torch.Tensor, shape: Sequence[int]) -> torch.Tensor:
    """Broadcast both ways: an axis of `shape` that is 1 keeps the tensor's length."""
    return x.expand(torch.broadcast_shapes(x.shape, tuple(shape)))


@operator("Expand")
def expand_(op: OperatorCall) -> Any:
    return op.call(expand, op.tensor(0), op.ints(1))


@operator("Tile")
def tile(op: OperatorCall) -> Any:
    return op.call(torch.Tensor.repeat, op.tensor(0), op.ints(1))


def _constant_value(op: OperatorCall) -> torch.Tensor:
    attribute = op.node.attribute[0]
    match attribute.name:
        case "value":
            return tensor_from_proto(attribute.t)
        case "sparse_value":
            return _dense(attribute.sparse_tensor)
        case "value_float" | "value_floats":
            return torch.tensor(op.attribute(attribute.name), dtype=torch.float32)
        case "value_int" | "value_ints":
            return torch.tensor(op.attribute(attribute.name), dtype=torch.int64)
        case _:
            msg = f"attribute '{attribute.name}': strings have no place in a training graph"
            raise Rejected(msg)


def _dense(sparse: onnx.SparseTensorProto) -> torch.Tensor:
    values, indices = tensor_from_proto(sparse.values), numpy_helper.to_array(sparse.indices)
    dense = torch.zeros(tuple(sparse.dims), dtype=values.dtype)
    flat = torch.from_numpy(indices.copy())
    if flat.dim() == 2:
        dense[tuple(flat.t())] = values
    else:
        dense.view(-1)[flat] = values
    return dense


@operator("Constant")
def constant(op: OperatorCall) -> Any:
    return _constant_value(op)


def filled(shape: Sequence[int], value: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(tuple(shape), value, dtype=dtype)


@operator("ConstantOfShape")
def constant_of_shape(op: OperatorCall) -> Any:
    value = op.tensor_attribute("value")
    element = torch.zeros(1) if value is None else value
    return op.call(filled, op.ints(0), element.reshape(()).item(), element.dtype)


def arange(start: torch.Tensor, limit: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """start, start + delta, … below limit, computed as ONNX does: first element plus multiples of the step."""
    count = max(int(torch.ceil((limit - start).to(torch.float64) / delta.to(torch.float64))), 0)
    return torch.arange(count, device=start.device).to(start.dtype) * delta + start


@operator("Range")
def range_(op: OperatorCall) -> Any:
    return op.call(arange, op.tensor(0), op.tensor(1), op.tensor(2))


def eye_like(x: torch.Tensor, dtype: torch.dtype, offset: int) -> torch.Tensor:
    """Ones on a diagonal of a matrix of the same shape; a positive offset lies above the main one."""
    ones = torch.ones(x.shape, device=x.device)
    return torch.diagonal_scatter(torch.zeros_like(ones), ones.diagonal(offset), offset).to(dtype)


@operator("EyeLike")
def eye_like_(op: OperatorCall) -> Any:
    dtype = torch_dtype(op.attribute("dtype", 0) or op.element_type(0) or 1)
    return op.call(eye_like, op.tensor(0), dtype, op.attribute("k", 0))


def triangle(x: torch.Tensor, offset: int, upper: bool) -> torch.Tensor:
    wide = widened(x)
    return (wide.triu(offset) if upper else wide.tril(offset)).to(x.dtype)


@operator("Trilu")
def trilu(op: OperatorCall) -> Any:
    return op.call(triangle, op.tensor(0), op.number(1, 0), bool(op.attribute("upper", 1)))


def depth_to_space(x: torch.Tensor, block: int, mode: str) -> torch.Tensor:
    """(batch, channels x block^2, h, w) to (batch, channels, h x block, w x block).

    `DCR` takes the block's offsets from the slow part of the channels, `CRD` (pixel shuffle) from the fast part.
    """
    batch, channels, height, width = x.shape
    depth = channels // block**2
    if mode == "DCR":
        parts = x.reshape(batch, block, block, depth, height, width).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(batch, depth, block, block, height, width).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(batch, depth, height * block, width * block)


@operator("DepthToSpace")
def depth_to_space_(op: OperatorCall) -> Any:
    return op.call(depth_to_space, op.tensor(0), op.attribute("blocksize"), op.attribute("mode", "DCR"))


def space_to_depth(x: torch.Tensor, block: int, mode: str) -> torch.Tensor:
    """The inverse of `depth_to_space`."""
    batch, channels, height, width = x.shape
    parts = x.reshape(batch, channels, height // block, block, width // block, block)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return parts.permute(*order).reshape(batch, channels * block**2, height // block, width // block)


@operator("SpaceToDepth")
def space_to_depth_(op: OperatorCall) -> Any:
    return op.call(space_to_depth, op.tensor(0), op.attribute("blocksize"), op.attribute("mode", "DCR"))
