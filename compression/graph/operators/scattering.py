"""Writing into parts of a tensor."""

from __future__ import annotations

from typing import Any

import torch

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.gathering import nonnegative
from compression.graph.operators.registry import operator

_REDUCE = {"add": "sum", "mul": "prod", "max": "amax", "min": "amin"}


def scatter_elements(
    x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, axis: int, reduction: str
) -> torch.Tensor:
    """Set, or combine with, single elements along an axis."""
    positions = nonnegative(indices.to(torch.int64), x.shape[axis])
    if reduction == "none":
        return x.scatter(axis, positions, updates)
    return x.scatter_reduce(axis, positions, updates, _REDUCE[reduction], include_self=True)


@operator("ScatterElements", "Scatter")
def scatter_elements_(op: OperatorCall) -> Any:
    reduction = op.attribute("reduction", "none")
    return op.call(scatter_elements, op.tensor(0), op.tensor(1), op.tensor(2), op.attribute("axis", 0), reduction)


def scatter_nd(x: torch.Tensor, indices: torch.Tensor, updates: torch.Tensor, reduction: str) -> torch.Tensor:
    """Set, or combine with, the slices that index tuples point to; duplicates combine in turn.

    Args:
        x: The tensor that is copied first.
        indices: (…, depth): positions of the first `depth` axes.
        updates: (…, *x.shape[depth:]).
        reduction: `none`, `add`, `mul`, `max` or `min`.
    """
    depth = indices.shape[-1]
    lead = x.shape[:depth]
    tuples = indices.reshape(-1, depth).to(torch.int64)
    flat = torch.zeros(tuples.shape[0], dtype=torch.int64, device=x.device)
    for axis, length in enumerate(lead):
        flat = flat * length + nonnegative(tuples[:, axis], length)
    rows = x.reshape(lead.numel(), -1)
    values = updates.reshape(tuples.shape[0], rows.shape[1])
    if reduction == "none":
        return rows.index_copy(0, flat, values).reshape(x.shape)
    spread = flat.unsqueeze(1).expand_as(values)
    return rows.scatter_reduce(0, spread, values, _REDUCE[reduction], include_self=True).reshape(x.shape)


@operator("ScatterND")
def scatter_nd_(op: OperatorCall) -> Any:
    return op.call(scatter_nd, op.tensor(0), op.tensor(1), op.tensor(2), op.attribute("reduction", "none"))


def write_cache(
    cache: torch.Tensor, update: torch.Tensor, start: torch.Tensor | None, axis: int, circular: bool
) -> torch.Tensor:
    """A key-value cache with new entries written from each sample's index on, around the end if `circular`."""
    axis %= cache.dim()
    batch, length = cache.shape[0], cache.shape[axis]
    first = start if start is not None else torch.zeros(batch, dtype=torch.int64, device=cache.device)
    positions = first.reshape(-1, 1) + torch.arange(update.shape[axis], device=cache.device)
    if circular:
        positions = positions % length
    shape = [1] * cache.dim()
    shape[0], shape[axis] = batch, update.shape[axis]
    return cache.scatter(axis, positions.reshape(shape).expand_as(update), update)


@operator("TensorScatter")
def tensor_scatter(op: OperatorCall) -> Any:
    circular = op.attribute("mode", "linear") == "circular"
    return op.call(write_cache, op.tensor(0), op.tensor(1), op.optional(2), op.attribute("axis", -2), circular)


def one_hot(indices: torch.Tensor, depth: int, values: torch.Tensor, axis: int) -> torch.Tensor:
    """`values[1]` at the index, `values[0]` elsewhere; indices outside [-depth, depth) give no hot element.

    Args:
        indices: Of any rank and numeric type.
        depth: Length of the new axis.
        values: (2,): off and on.
        axis: Place of the new axis in the result.
    """
    positions = nonnegative(indices.to(torch.int64), depth).unsqueeze(-1)
    hot = positions == torch.arange(depth, device=indices.device)
    return torch.where(hot, values[1], values[0]).movedim(-1, axis)


@operator("OneHot")
def one_hot_(op: OperatorCall) -> Any:
    return op.call(one_hot, op.tensor(0), op.number(1), op.tensor(2), op.attribute("axis", -1))
