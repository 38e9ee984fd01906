"""Quantization that is computed in floats and has a gradient. Pure functions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

# Shares of a range among which the one with the least squared error is looked for.
_SHARES = tuple(share / 40 for share in range(40, 3, -1))
INT32_MAX = 2**31 - 1


@dataclass(frozen=True)
class Grid:
    """The whole numbers that a quantized tensor may hold, `low` to `high`."""

    low: int
    high: int

    @property
    def levels(self) -> int:
        """Steps from the lowest to the highest number."""
        return self.high - self.low


def activation_grid(bits: int) -> Grid:
    """Unsigned: 0 to 2^bits - 1.

    >>> activation_grid(4)
    Grid(low=0, high=15)
    """
    return Grid(0, 2**bits - 1)


def weight_grid(bits: int) -> Grid:
    """Signed; at 8 bits without -128, so that two products fit into 16 bits (Jacob et al. 2017, section 3.1).

    >>> weight_grid(8), weight_grid(2)
    (Grid(low=-127, high=127), Grid(low=-2, high=1))
    """
    high = 2 ** (bits - 1) - 1
    return Grid(-high if bits == 8 else -high - 1, high)


def quantize(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor | float, grid: Grid) -> torch.Tensor:
    """Whole numbers in `grid`, as floats: clamp(round(x / scale) + zero_point), halves to even, as ONNX defines it.

    Args:
        x: Any shape.
        scale: Of a shape that broadcasts to that of `x`, above 0.
        zero_point: A whole number of like shape.
        grid: What the numbers may be.
    """
    return (torch.round(x / scale) + zero_point).clamp(grid.low, grid.high)


def fake_quantize(
    x: torch.Tensor,
    scale: torch.Tensor,
    zero_point: torch.Tensor,
    grid: Grid,
    step_gradient: torch.Tensor | float = 1.0,
) -> torch.Tensor:
    """Quantize and dequantize, (q - zero_point) * scale, with gradients for `x` and `scale`.

    The gradient of rounding is taken as 1 and that of clamping as 0 outside (straight-through estimator, Bengio et al.
    2013). The gradient of the scale is that of LSQ (Esser et al. 2020, equation 3): round(x / s) - x / s inside the
    range and the bound's level, low - z or high - z, beyond it.

    Args:
        x: Float tensor of any shape.
        scale: Step size, of a shape that broadcasts to that of `x`, above 0.
        zero_point: Whole number that stands for 0.0; gets no gradient.
        grid: What the whole numbers may be.
        step_gradient: Factor of the scale's gradient (see `lsq_factor`), of the scale's shape or a number.
    """
    result: torch.Tensor = _FakeQuantize.apply(x.float(), scale, zero_point, grid, step_gradient)  # type: ignore[no-untyped-call, unused-ignore]
    return result.to(x.dtype)


class _FakeQuantize(torch.autograd.Function):
    @staticmethod
    def forward(  # type: ignore[override, unused-ignore]  # noqa: PLR0917 - torch gives them by position
        ctx: Any,  # noqa: ANN401 - torch gives what it likes
        x: torch.Tensor,
        scale: torch.Tensor,
        zero_point: torch.Tensor,
        grid: Grid,
        step_gradient: torch.Tensor | float,
    ) -> torch.Tensor:
        ratio = x / scale
        level = (torch.round(ratio) + zero_point).clamp_(grid.low, grid.high).sub_(zero_point)
        ctx.grid, ctx.step_gradient = grid, step_gradient
        ctx.save_for_backward(ratio, level, zero_point, scale)
        return level * scale

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401
        (gradient,) = gradients
        ratio, level, zero_point, scale = ctx.saved_tensors
        inside = (ratio >= ctx.grid.low - zero_point) & (ratio <= ctx.grid.high - zero_point)
        of_x = gradient * inside
        of_scale = None
        if ctx.needs_input_grad[1]:
            slope = torch.addcmul(gradient * level, of_x, ratio, value=-1)
            of_scale = slope.sum_to_size(scale.shape) * ctx.step_gradient
        return of_x, of_scale, None, None, None


def lsq_factor(elements: int, grid: Grid) -> float:
    """What LSQ multiplies a step size's gradient by: 1 / sqrt(elements * high) (Esser et al. 2020, section 2.2).

    Args:
        elements: Weights that share the step size, or activations of one sample.
        grid: Its `high` is the number of levels above zero.
    """
    return float((elements * grid.high) ** -0.5)


def range_parameters(low: torch.Tensor, high: torch.Tensor, grid: Grid) -> tuple[torch.Tensor, torch.Tensor]:
    """Scale and zero point of an unsigned grid over a range, which is widened to hold zero and moved to hit it.

    Jacob et al. 2017, section 3.1, end. A range of no length, as constant zeros have it, gets scale 1.

    Args:
        low: Lowest value, any shape.
        high: Highest value, same shape.
        grid: The whole numbers.

    Returns:
        Scale and zero point (a whole number), both floats of the shape of `low`.
    """
    low, high = low.clamp(max=0), high.clamp(min=0)
    scale = (high - low) / grid.levels
    scale = torch.where(scale > torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))
    return scale, torch.round(grid.low - low / scale).clamp(grid.low, grid.high)


def symmetric_scale(weight: torch.Tensor, grid: Grid, axis: int | None) -> torch.Tensor:
    """The step that brings the largest magnitude to the highest level, for each slice along `axis` or for all.

    Args:
        weight: Any shape.
        grid: The whole numbers.
        axis: Axis of the output channels; None for one step in all.

    Returns:
        () or of the rank of `weight`, with length 1 everywhere but at `axis`. Slices of zeros have step 1.
    """
    scale = per_slice(weight.abs(), axis, "max") / grid.high
    return torch.where(scale > torch.finfo(torch.float32).tiny, scale, torch.ones_like(scale))


def per_slice(x: torch.Tensor, axis: int | None, how: str) -> torch.Tensor:
    """The `max` or `sum` of each slice along `axis`, all axes kept, or of all elements, ()."""
    if axis is None:
        return x.max() if how == "max" else x.sum()
    others = [other for other in range(x.dim()) if other != axis % x.dim()]
    if not others:
        return x
    return x.amax(others, keepdim=True) if how == "max" else x.sum(others, keepdim=True)


def least_error_scale(
    x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, grid: Grid, axis: int | None
) -> torch.Tensor:
    """The share of a scale, 10 to 100 % of it, with which quantizing `x` errs least in the sum of squares.

    With few bits, cutting off rare large values costs less than coarse steps for all.

    Args:
        x: Values to represent.
        scale: Covers their whole range; a share of it covers that share of the range.
        zero_point: Stays as it is: both ends of the range move in proportion.
        grid: The whole numbers.
        axis: For each slice along it; None for all elements together.

    Returns:
        A scale of the shape of `scale`.
    """
    best, least = scale, torch.full_like(scale, torch.inf)
    for share in _SHARES:
        tried = scale * share
        error = (quantize(x, tried, zero_point, grid) - zero_point) * tried - x
        found = per_slice(error.square(), axis, "sum")
        best = torch.where(found < least, tried, best)
        least = torch.minimum(found, least)
    return best


def fake_quantize_bias(bias: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """A bias as the accumulator adds it: an int32 multiple of input scale times weight scale (Jacob 2017, equation 11).

    The gradient passes unchanged.

    Args:
        bias: (channels,).
        scale: () or (channels,).
    """
    result: torch.Tensor = _Replace.apply(bias, (bias_levels(bias, scale) * scale.double()).to(bias.dtype))  # type: ignore[no-untyped-call, unused-ignore]
    return result


@torch.no_grad()
def bias_levels(bias: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The multiples of `scale` nearest to a bias, in the range of int32; float64, as float32 ends at 24 bits."""
    return torch.round(bias.double() / scale.double()).clamp(-INT32_MAX, INT32_MAX)


class _Replace(torch.autograd.Function):
    """Another value in the place of the first one, whose gradient it takes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, value: torch.Tensor) -> torch.Tensor:  # type: ignore[override, unused-ignore]  # noqa: ANN401, ARG004
        return value

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:  # noqa: ANN401, ARG004
        return gradients[0], None
