"""Pooling over windows and over all positions."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch.nn import functional

from compression.graph.operators.call import OperatorCall
from compression.graph.operators.padding import same_pads
from compression.graph.operators.registry import operator

_MAX_POOL: tuple[Callable[..., Any], ...] = (functional.max_pool1d, functional.max_pool2d, functional.max_pool3d)
_AVERAGE_POOL = (functional.avg_pool1d, functional.avg_pool2d, functional.avg_pool3d)


def _geometry(op: OperatorCall) -> dict[str, Any]:
    kernel = op.attribute("kernel_shape")
    spatial = len(kernel)
    if spatial > 3:
        op.reject(f"{spatial} spatial axes; 1 to 3 are supported")
    return {
        "kernel": kernel,
        "stride": op.attribute("strides") or [1] * spatial,
        "dilation": op.attribute("dilations") or [1] * spatial,
        "pads": op.attribute("pads") or [0] * 2 * spatial,
        "auto_pad": op.attribute("auto_pad", "NOTSET"),
        "ceil_mode": bool(op.attribute("ceil_mode", 0)),
    }


def _symmetric(geometry: dict[str, Any]) -> list[int] | None:
    """The padding where torch's own pooling can do it: equal at both ends, at most half the kernel."""
    kernel, pads = geometry["kernel"], geometry["pads"]
    begin, end = pads[: len(kernel)], pads[len(kernel) :]
    if geometry["auto_pad"] == "VALID":
        return [0] * len(kernel)
    fits = begin == end and all(2 * amount <= length for amount, length in zip(begin, kernel, strict=True))
    return begin if fits and geometry["auto_pad"] == "NOTSET" else None


def window_pads(
    sizes: Sequence[int],
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    pads: Sequence[int],
    auto_pad: str,
    ceil_mode: bool,
) -> list[tuple[int, int, int]]:
    """Begin padding, end padding and overhang of each spatial axis.

    The overhang is what `ceil_mode` adds after the padding so that the last window fits; a window that would start in
    the end padding is left out, as in torch and ONNX Runtime.
    """
    found = []
    for axis, (length, window, step, spread) in enumerate(zip(sizes, kernel, stride, dilation, strict=True)):
        extent = (window - 1) * spread + 1
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            found.append((*same_pads(length, extent, step, auto_pad == "SAME_UPPER"), 0))
            continue
        begin, end = (0, 0) if auto_pad == "VALID" else (pads[axis], pads[axis + len(kernel)])
        free = length + begin + end - extent
        count = -(-free // step) if ceil_mode else free // step
        if ceil_mode and count * step >= length + begin:
            count -= 1
        found.append((begin, end, max(0, count * step + extent - length - begin - end)))
    return found


def _pad(x: torch.Tensor, pads: Sequence[tuple[int, int, int]], value: float) -> torch.Tensor:
    flat = [amount for begin, end, overhang in reversed(pads) for amount in (begin, end + overhang)]
    return functional.pad(x, flat, value=value) if any(flat) else x


def max_pool(
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    pads: Sequence[int],
    auto_pad: str,
    ceil_mode: bool,
) -> torch.Tensor:
    """Maximum over windows with any padding, which never wins."""
    lowest = -torch.inf if x.dtype.is_floating_point else torch.iinfo(x.dtype).min
    found = window_pads(x.shape[2:], kernel, stride, dilation, pads, auto_pad, ceil_mode)
    if not x.dtype.is_floating_point:
        # torch pools floats alone; float64 holds 8-bit and 32-bit integers exactly.
        padded = _pad(x.to(torch.float64), found, lowest)
        return _MAX_POOL[len(kernel) - 1](padded, kernel, stride, 0, dilation).to(x.dtype)
    result: torch.Tensor = _MAX_POOL[len(kernel) - 1](_pad(x, found, lowest), kernel, stride, 0, dilation)
    return result


def max_pool_with_indices(
    x: torch.Tensor, geometry: dict[str, Any], column_major: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Maxima, and their positions in the flattened input; `column_major` counts the axes the other way round."""
    kernel, stride, dilation = geometry["kernel"], geometry["stride"], geometry["dilation"]
    found = window_pads(x.shape[2:], **geometry)
    padded = _pad(x, found, -torch.inf)
    pool = _MAX_POOL[len(kernel) - 1]
    values, indices = pool(padded, kernel, stride, 0, dilation, return_indices=True)
    positions: list[torch.Tensor] = []
    for axis in reversed(range(len(kernel))):
        length = padded.shape[2 + axis]
        positions.insert(0, indices % length - found[axis][0])
        indices = indices // length
    sizes = x.shape[2:]
    flat = torch.zeros_like(positions[0])
    order = reversed(range(len(sizes))) if column_major else range(len(sizes))
    for axis in order:
        flat = flat * sizes[axis] + positions[axis]
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(*x.shape[:2], *[1] * len(sizes))
    return values, flat + planes * sizes.numel()


@operator("MaxPool")
def max_pool_(op: OperatorCall) -> Any:
    geometry = _geometry(op)
    padding = _symmetric(geometry)
    if op.wants(1):
        results = op.call(max_pool_with_indices, op.tensor(0), geometry, bool(op.attribute("storage_order", 0)))
        return [op.item(results, 0), op.item(results, 1)]
    if padding is not None and op.is_float(0):
        function = _MAX_POOL[len(padding) - 1]
        return op.call(
            function,
            op.tensor(0),
            geometry["kernel"],
            geometry["stride"],
            padding,
            geometry["dilation"],
            geometry["ceil_mode"],
        )
    return op.call(max_pool, op.tensor(0), **geometry)


def average_pool(
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    pads: Sequence[int],
    auto_pad: str,
    ceil_mode: bool,
    count_include_pad: bool,
) -> torch.Tensor:
    """Mean over windows; padding counts only with `count_include_pad`, and the overhang of `ceil_mode` never does."""
    found = window_pads(x.shape[2:], kernel, stride, dilation, pads, auto_pad, ceil_mode)
    counted = torch.ones(1, 1, *x.shape[2:], dtype=x.dtype, device=x.device)
    if count_include_pad:
        counted = _pad(counted, [(begin, end, 0) for begin, end, _ in found], 1)
        counted = _pad(counted, [(0, 0, overhang) for _, _, overhang in found], 0)
    else:
        counted = _pad(counted, found, 0)
    total = _window_sum(_pad(x, found, 0), kernel, stride, dilation)
    return total / _window_sum(counted, kernel, stride, dilation)


def _window_sum(x: torch.Tensor, kernel: Sequence[int], stride: Sequence[int], dilation: Sequence[int]) -> torch.Tensor:
    for axis, (length, step, spread) in enumerate(zip(kernel, stride, dilation, strict=True)):
        windows = x.unfold(2 + axis, (length - 1) * spread + 1, step)
        x = windows[..., ::spread].sum(-1)
    return x


@operator("AveragePool")
def average_pool_(op: OperatorCall) -> Any:
    geometry = _geometry(op)
    padding = _symmetric(geometry)
    include = bool(op.attribute("count_include_pad", 0))
    if padding is not None and all(spread == 1 for spread in geometry["dilation"]):
        function = _AVERAGE_POOL[len(padding) - 1]
        return op.call(
            function, op.tensor(0), geometry["kernel"], geometry["stride"], padding, geometry["ceil_mode"], include
        )
    return op.call(average_pool, op.tensor(0), **geometry, count_include_pad=include)


def lp_pool(
    x: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
    pads: Sequence[int],
    auto_pad: str,
    ceil_mode: bool,
    p: int,
) -> torch.Tensor:
    """(sum over the window of |x|^p)^(1/p); padding adds nothing."""
    found = window_pads(x.shape[2:], kernel, stride, dilation, pads, auto_pad, ceil_mode)
    return _window_sum(_pad(x, found, 0).abs() ** p, kernel, stride, dilation) ** (1 / p)


@operator("LpPool")
def lp_pool_(op: OperatorCall) -> Any:
    return op.call(lp_pool, op.tensor(0), **_geometry(op), p=op.attribute("p", 2))


def _spatial(x: torch.Tensor) -> list[int]:
    return list(range(2, x.dim()))


def global_average(x: torch.Tensor) -> torch.Tensor:
    return x.mean(_spatial(x), keepdim=True)


def global_max(x: torch.Tensor) -> torch.Tensor:
    return x.amax(_spatial(x), keepdim=True)


def global_lp(x: torch.Tensor, p: int) -> torch.Tensor:
    return (x.abs() ** p).sum(_spatial(x), keepdim=True) ** (1 / p)


@operator("GlobalAveragePool")
def global_average_pool(op: OperatorCall) -> Any:
    if op.rank(0) == 4:
        return op.call(functional.adaptive_avg_pool2d, op.tensor(0), 1)
    return op.call(global_average, op.tensor(0))


@operator("GlobalMaxPool")
def global_max_pool(op: OperatorCall) -> Any:
    return op.call(global_max, op.tensor(0))


@operator("GlobalLpPool")
def global_lp_pool(op: OperatorCall) -> Any:
    return op.call(global_lp, op.tensor(0), op.attribute("p", 2))


def max_unpool(
    x: torch.Tensor,
    indices: torch.Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    pads: Sequence[int],
    sizes: Sequence[int] | None,
) -> torch.Tensor:
    """Put maxima back to where they came from, zeros elsewhere.

    The indices are positions in the flattened tensor of the natural size; a larger `sizes` holds that in its corner.
    """
    spatial = len(kernel)
    natural = [
        (length - 1) * stride[axis] + kernel[axis] - pads[axis] - pads[axis + spatial]
        for axis, length in enumerate(x.shape[2:])
    ]
    shape = [*x.shape[:2], *natural]
    full = list(sizes) if sizes is not None else shape
    flat = x.new_zeros(torch.Size(full).numel()).scatter(0, indices.reshape(-1), x.reshape(-1))
    return flat.reshape(full)


@operator("MaxUnpool")
def max_unpool_(op: OperatorCall) -> Any:
    kernel = op.attribute("kernel_shape")
    stride = op.attribute("strides") or [1] * len(kernel)
    pads = op.attribute("pads") or [0] * 2 * len(kernel)
    return op.call(max_unpool, op.tensor(0), op.tensor(1), kernel, stride, pads, op.ints(2))
