"""Reading parts of a tensor: slices and gathers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.registry import operator


def slices(
    x: torch.Tensor, starts: Sequence[int], ends: Sequence[int], axes: Sequence[int] | None, steps: Sequence[int] | None
) -> torch.Tensor:
    """Python's slices of the given axes; negative steps, which torch has not, gather the positions."""
    chosen = axes if axes is not None else range(len(starts))
    pace = steps if steps is not None else [1] * len(starts)
    for start, end, axis, step in zip(starts, ends, chosen, pace, strict=True):
        positions = range(*slice(start, _unclamped(end, step), step).indices(x.shape[axis]))
        if step > 0:
            index = [slice(None)] * x.dim()
            index[axis] = slice(positions.start, max(positions.stop, positions.start), step)
            x = x[tuple(index)]
        else:
            x = x.index_select(axis, torch.tensor(positions, dtype=torch.int64, device=x.device))
    return x


def _unclamped(end: int, step: int) -> int | None:
    """ONNX writes "past the beginning" as a very negative end, which Python would count from the back."""
    return None if step < 0 and end < -(2**30) else end


@operator("Slice")
def slice_(op: OperatorCall) -> Any:
    if op.opset < 10:
        starts, ends, axes, steps = op.attribute("starts"), op.attribute("ends"), op.attribute("axes"), None
    else:
        starts, ends, axes, steps = op.ints(1), op.ints(2), op.ints(3), op.ints(4)
    return op.call(slices, op.tensor(0), starts, ends, axes, steps)


def gather(x: torch.Tensor, indices: torch.Tensor, axis: int) -> torch.Tensor:
    """Entries of an axis by an index tensor of any rank; negative indices count from the end."""
    flat = indices.reshape(-1).to(torch.int64)
    flat = torch.where(flat < 0, flat + x.shape[axis], flat)
    axis %= x.dim()
    return x.index_select(axis, flat).reshape([*x.shape[:axis], *indices.shape, *x.shape[axis + 1 :]])


@operator("Gather")
def gather_(op: OperatorCall) -> Any:
    """A lookup in a stored matrix is an `nn.Embedding`; a fixed index on an axis is `select`."""
    axis = op.attribute("axis", 0)
    indices = op.constant(1)
    if indices is not None and indices.dim() == 0:
        return op.call(torch.select, op.tensor(0), axis, int(indices))
    weight = op.stored(0)
    if weight is not None and axis == 0 and op.rank(0) == 2 and indices is None:
        (values,) = op.parameters(weight)
        layer = nn.Embedding(values.shape[0], values.shape[1], device="meta")
        layer.weight = values
        return op.layer(layer, op.call(nonnegative, op.tensor(1), values.shape[0]), named_after=(weight,))
    return op.call(gather, op.tensor(0), op.tensor(1), axis)


def nonnegative(indices: torch.Tensor, length: int) -> torch.Tensor:
    """Indices from the front; ONNX lets negative ones count from the end, an embedding does not."""
    return torch.where(indices < 0, indices + length, indices)


def gather_elements(x: torch.Tensor, indices: torch.Tensor, axis: int) -> torch.Tensor:
    return torch.gather(x, axis, nonnegative(indices.to(torch.int64), x.shape[axis]))


@operator("GatherElements")
def gather_elements_(op: OperatorCall) -> Any:
    return op.call(gather_elements, op.tensor(0), op.tensor(1), op.attribute("axis", 0))


def gather_nd(x: torch.Tensor, indices: torch.Tensor, batch_dims: int) -> torch.Tensor:
    """Slices by index tuples: the last axis of `indices` holds positions of the axes after the batch axes."""
    depth = indices.shape[-1]
    batch = [
        torch.arange(length, device=x.device).reshape(-1, *[1] * (indices.dim() - 2 - axis))
        for axis, length in enumerate(x.shape[:batch_dims])
    ]
    return x[(*batch, *(indices[..., position].to(torch.int64) for position in range(depth)))]


@operator("GatherND")
def gather_nd_(op: OperatorCall) -> Any:
    return op.call(gather_nd, op.tensor(0), op.tensor(1), op.attribute("batch_dims", 0))


def compress(x: torch.Tensor, condition: torch.Tensor, axis: int | None) -> torch.Tensor:
    """The entries where the condition holds; one shorter than the axis is false beyond its end."""
    if axis is None:
        x, axis = x.reshape(-1), 0
    return x.index_select(axis, condition.nonzero().reshape(-1))


@operator("Compress")
def compress_(op: OperatorCall) -> Any:
    return op.call(compress, op.tensor(0), op.tensor(1), op.attribute("axis"))


@operator("ArrayFeatureExtractor", domain="ai.onnx.ml")
def array_feature_extractor(op: OperatorCall) -> Any:
    return op.call(last_axis_entries, op.tensor(0), op.tensor(1))


def last_axis_entries(x: torch.Tensor, indices: torch.Tensor) -> torch.Tensor:
    return gather(x, indices.reshape(-1), x.dim() - 1)


def reverse_sequences(x: torch.Tensor, lengths: torch.Tensor, batch_axis: int, time_axis: int) -> torch.Tensor:
    """Reverse the first steps of each sample, as many as its length, and leave the padding behind in place."""
    moved = x.movedim((batch_axis, time_axis), (0, 1))
    steps = torch.arange(moved.shape[1], device=x.device)
    wanted = lengths.reshape(-1, 1)
    positions = torch.where(steps < wanted, wanted - 1 - steps, steps)
    rows = torch.arange(moved.shape[0], device=x.device).reshape(-1, 1)
    return moved[rows, positions].movedim((0, 1), (batch_axis, time_axis))


@operator("ReverseSequence")
def reverse_sequence(op: OperatorCall) -> Any:
    return op.call(
        reverse_sequences, op.tensor(0), op.tensor(1), op.attribute("batch_axis", 1), op.attribute("time_axis", 0)
    )
