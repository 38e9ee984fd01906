"""Sorting and finding: largest, non-zero and unique elements."""

from __future__ import annotations

from typing import Any

import torch

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.dtypes import widened
from compression.graph.operators.registry import operator


def top_k(x: torch.Tensor, k: int, axis: int, largest: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """The k largest or smallest in order; of equal ones the lower index comes first."""
    values, indices = torch.sort(widened(x), dim=axis, descending=largest, stable=True)
    return values.narrow(axis, 0, k).to(x.dtype), indices.narrow(axis, 0, k)


@operator("TopK")
def top_k_(op: OperatorCall) -> Any:
    k = op.number(1) if op.opset >= 10 else op.attribute("k")
    results = op.call(top_k, op.tensor(0), k, op.attribute("axis", -1), bool(op.attribute("largest", 1)))
    return [op.item(results, 0), op.item(results, 1)]


def nonzero(x: torch.Tensor) -> torch.Tensor:
    """(rank, count): one column of indices per non-zero element; a scalar counts as a vector of one."""
    return torch.atleast_1d(x).nonzero().t()


@operator("NonZero")
def nonzero_(op: OperatorCall) -> Any:
    return op.call(nonzero, op.tensor(0))


def unique(
    x: torch.Tensor, axis: int | None, in_order: bool
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Unique elements (or slices of an axis), where each first occurs, which one each element is, and the counts.

    Args:
        x: Any tensor.
        axis: Axis whose slices are compared; None compares the elements of the flattened tensor.
        in_order: Sorted; otherwise in order of first occurrence.
    """
    if axis is None:
        x, axis = x.reshape(-1), 0
    values, inverse, counts = torch.unique(x, sorted=True, return_inverse=True, return_counts=True, dim=axis)
    positions = torch.arange(inverse.numel(), device=x.device)
    first = torch.full_like(counts, inverse.numel()).scatter_reduce(0, inverse, positions, "amin")
    if in_order:
        return values, first, inverse, counts
    order = first.argsort()
    rank = order.argsort()
    return values.index_select(axis, order), first[order], rank[inverse], counts[order]


@operator("Unique")
def unique_(op: OperatorCall) -> Any:
    results = op.call(unique, op.tensor(0), op.attribute("axis"), bool(op.attribute("sorted", 1)))
    return [op.item(results, index) for index in range(op.outputs)]
