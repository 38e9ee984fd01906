"""Padding: the operator, and what convolutions and pooling need of it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.dtypes import UNSIGNED, widened
from compression.graph.operators.registry import operator


def torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX's (all begins, all ends) as torch's pairs from the last axis on."""
    count = len(pads) // 2
    return [amount for axis in reversed(range(count)) for amount in (pads[axis], pads[axis + count])]


def same_pads(length: int, extent: int, stride: int, upper: bool) -> tuple[int, int]:
    """Begin and end padding after which there are ceil(length / stride) windows; `upper` puts the odd one last."""
    total = max(0, (-(-length // stride) - 1) * stride + extent - length)
    return (total // 2, total - total // 2) if upper else (total - total // 2, total // 2)


def pad_same(x: torch.Tensor, extents: Sequence[int], stride: Sequence[int], upper: bool, value: float) -> torch.Tensor:
    """Pad the spatial axes as `auto_pad` SAME_UPPER or SAME_LOWER asks.

    Args:
        x: (batch, channels, *spatial).
        extents: Length of the dilated kernel per spatial axis.
        stride: Stride per spatial axis.
        upper: SAME_UPPER rather than SAME_LOWER.
        value: What is put there.
    """
    pairs = [
        same_pads(length, extent, step, upper)
        for length, extent, step in zip(x.shape[2:], extents, stride, strict=True)
    ]
    flat = [amount for pair in reversed(pairs) for amount in pair]
    return functional.pad(x, flat, value=value) if any(flat) else x


def pad(x: torch.Tensor, pads: Sequence[int], axes: Sequence[int] | None, mode: str, value: Any) -> torch.Tensor:
    """Pad any axes of a tensor of any type; negative amounts cut.

    `reflect`, `edge` and `wrap` gather along each axis by index, which torch's own padding does only for some ranks.
    """
    chosen = range(x.dim()) if axes is None else [axis % x.dim() for axis in axes]
    begin, end = [0] * x.dim(), [0] * x.dim()
    for position, axis in enumerate(chosen):
        begin[axis], end[axis] = pads[position], pads[position + len(pads) // 2]
    if mode == "constant":
        flat = torch_pads([*begin, *end])
        if x.dtype in UNSIGNED or x.dtype == torch.bool:
            return functional.pad(widened(x).to(torch.int64), flat, value=int(value or 0)).to(x.dtype)
        return functional.pad(x, flat, value=value or 0)
    for axis, (before, after) in enumerate(zip(begin, end, strict=True)):
        if before or after:
            x = x.index_select(axis, _source(x.shape[axis], before, after, mode, x.device))
    return x


def _source(length: int, before: int, after: int, mode: str, device: torch.device) -> torch.Tensor:
    positions = torch.arange(-before, length + after, device=device)
    if mode == "edge":
        return positions.clamp(0, length - 1)
    if mode == "wrap":
        return positions % length
    period = max(2 * (length - 1), 1)
    folded = positions % period
    return torch.where(folded >= length, period - folded, folded)


@operator("Pad")
def pad_(op: OperatorCall) -> Any:
    """Amounts and value are attributes before operator set 11."""
    mode = op.attribute("mode", "constant")
    if op.opset < 11:
        pads, value, axes = op.attribute("pads"), op.attribute("value", 0.0), None
    else:
        pads, value, axes = op.ints(1), op.number(2, 0), op.ints(3)
    rank = op.rank(0)
    fixed = isinstance(pads, list) and axes is None and rank == len(pads) // 2
    if mode == "constant" and fixed and op.is_float(0):
        return op.call(functional.pad, op.tensor(0), torch_pads(pads), value=value)
    return op.call(pad, op.tensor(0), pads, axes, mode, value)


def center_crop_or_pad(x: torch.Tensor, sizes: Sequence[int], axes: Sequence[int] | None) -> torch.Tensor:
    """Cut or zero-pad around the centre until the axes have the wanted lengths; the odd element goes at the end."""
    for size, axis in zip(sizes, axes if axes is not None else range(x.dim()), strict=True):
        missing = size - x.shape[axis]
        if missing < 0:
            x = x.narrow(axis, -missing // 2, size)
        elif missing > 0:
            x = pad(x, [missing // 2, missing - missing // 2], [axis], "constant", 0)
    return x


@operator("CenterCropPad")
def center_crop_pad(op: OperatorCall) -> Any:
    return op.call(center_crop_or_pad, op.tensor(0), op.ints(1), op.attribute("axes"))
