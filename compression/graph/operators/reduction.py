"""Reductions over axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import fx

from compression.graph.operators.activation import first_argmax
from compression.graph.operators.call import OperatorCall
from compression.graph.operators.dtypes import widened
from compression.graph.operators.registry import operator


def _axes_of(x: torch.Tensor, axes: Sequence[int] | None) -> list[int]:
    return list(range(x.dim())) if axes is None else [axis % max(x.dim(), 1) for axis in axes if x.dim()]


def reduce_sum(x: torch.Tensor, axes: Sequence[int] | None, keepdims: bool) -> torch.Tensor:
    return widened(x).sum(_axes_of(x, axes), keepdim=keepdims, dtype=_accumulator(x)).to(x.dtype)


def _accumulator(x: torch.Tensor) -> torch.dtype:
    return x.dtype if x.dtype.is_floating_point else torch.int64


def reduce_mean(x: torch.Tensor, axes: Sequence[int] | None, keepdims: bool) -> torch.Tensor:
    if x.dtype.is_floating_point:
        return x.mean(_axes_of(x, axes), keepdim=keepdims)
    return widened(x).to(torch.float64).mean(_axes_of(x, axes), keepdim=keepdims).to(x.dtype)


def reduce_max(x: torch.Tensor, axes: Sequence[int] | None, keepdims: bool) -> torch.Tensor:
    """Maximum; that of nothing is the lowest value of the type."""
    return _extreme(x, axes, keepdims, largest=True)


def reduce_min(x: torch.Tensor, axes: Sequence[int] | None, keepdims: bool) -> torch.Tensor:
    return _extreme(x, axes, keepdims, largest=False)


def _extreme(x: torch.Tensor, axes: Sequence[int] | None, keepdims: bool, *, largest: bool) -> torch.Tensor:
    chosen, wide = _axes_of(x, axes), widened(x)
    if any(x.shape[axis] == 0 for axis in chosen):
        shape = [1 if axis in chosen else length for axis, length in enumerate(x.shape)]
        low, high = _limits(x.dtype)
        filled = torch.full(shape, low if largest else high, dtype=x.dtype, device=x.device)
        return filled if keepdims else filled.reshape([n for axis, n in enumerate(x.shape) if axis not in chosen])
    if not chosen:
        return x
    return (wide.amax(chosen, keepdim=keepdims) if largest else wide.amin(chosen, keepdim=keepdims)).to(x.dtype)


def _limits(dtype: torch.dtype) -> tuple[float, float]:
    if dtype == torch.bool:
        return False, True
    if dtype.is_floating_point:
        return -torch.inf, torch.inf
    return torch.iinfo(dtype).min, torch.iinfo(dtype).max


def reduce_product(x: torch.Tensor, axes: Sequence[int] | None, keepdims: bool) -> torch.Tensor:
    result = widened(x)
    for axis in sorted(_axes_of(x, axes), reverse=True):
        result = result.prod(axis, keepdim=keepdims)
    return result.to(x.dtype)


def reduce_l1(x: torch.Tensor, axes: Sequence[int] | None, keepdims: bool) -> torch.Tensor:
    return reduce_sum(x.abs(), axes, keepdims)


def reduce_l2(x: torch.Tensor, axes: Sequence[int] | None, keepdims: bool) -> torch.Tensor:
    if x.dtype.is_floating_point:
        return torch.linalg.vector_norm(x, dim=_axes_of(x, axes), keepdim=keepdims) if x.dim() else x.abs()
    return reduce_sum_square(x.to(torch.float64), axes, keepdims).sqrt().to(x.dtype)


def reduce_sum_square(x: torch.Tensor, axes: Sequence[int] | None, keepdims: bool) -> torch.Tensor:
    return reduce_sum(x * x, axes, keepdims)


def reduce_log_sum(x: torch.Tensor, axes: Sequence[int] | None, keepdims: bool) -> torch.Tensor:
    return reduce_sum(x, axes, keepdims).log()


def reduce_log_sum_exp(x: torch.Tensor, axes: Sequence[int] | None, keepdims: bool) -> torch.Tensor:
    return torch.logsumexp(x, _axes_of(x, axes), keepdim=keepdims)


_REDUCTIONS = {
    "ReduceSum": reduce_sum,
    "ReduceMean": reduce_mean,
    "ReduceMax": reduce_max,
    "ReduceMin": reduce_min,
    "ReduceProd": reduce_product,
    "ReduceL1": reduce_l1,
    "ReduceL2": reduce_l2,
    "ReduceSumSquare": reduce_sum_square,
    "ReduceLogSum": reduce_log_sum,
    "ReduceLogSumExp": reduce_log_sum_exp,
}


# What is left of a reduction over no axes.
_WITHOUT_AXES = {
    "ReduceL1": torch.abs,
    "ReduceL2": torch.abs,
    "ReduceSumSquare": torch.square,
    "ReduceLogSum": torch.log,
}


def reduce_by_axes(operator_name: str, x: torch.Tensor, axes: Sequence[int], keepdims: bool, noop: bool) -> Any:
    """A reduction whose axes are known only now; see `reduction`."""
    if not axes and noop:
        return _WITHOUT_AXES[operator_name](x) if operator_name in _WITHOUT_AXES else x
    return _REDUCTIONS[operator_name](x, axes or None, keepdims)


@operator(*_REDUCTIONS)
def reduction(op: OperatorCall) -> Any:
    """Without axes all are reduced, or none with `noop_with_empty_axes`, and then squares and logs still apply."""
    name, x, axes = op.node.op_type, op.tensor(0), op.axes(1)
    keepdims, noop = bool(op.attribute("keepdims", 1)), bool(op.attribute("noop_with_empty_axes", 0))
    if isinstance(axes, fx.Node):
        return op.call(reduce_by_axes, name, x, axes, keepdims, noop)
    if not axes and noop:
        return op.call(_WITHOUT_AXES[name], x) if name in _WITHOUT_AXES else x
    return op.call(_REDUCTIONS[name], x, axes or None, keepdims)


def arg_extreme(x: torch.Tensor, axis: int, keepdims: bool, last: bool, largest: bool) -> torch.Tensor:
    """Position of the maximum or minimum along an axis: of several, the first, or the last with `last`."""
    wide = widened(x)
    ordered = wide.flip(axis) if last else wide
    values = ordered if largest else ~ordered if not ordered.dtype.is_floating_point else -ordered
    position = first_argmax(values, axis)
    if last:
        position = x.shape[axis] - 1 - position
    return position if keepdims else position.squeeze(axis)


@operator("ArgMax", "ArgMin")
def arg_extreme_(op: OperatorCall) -> Any:
    return op.call(
        arg_extreme,
        op.tensor(0),
        op.attribute("axis", 0),
        bool(op.attribute("keepdims", 1)),
        bool(op.attribute("select_last_index", 0)),
        op.node.op_type == "ArgMax",
    )
