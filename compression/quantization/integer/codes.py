"""Weights as whole numbers, with a scale for each output channel or one for all. Pure functions on arrays."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Limit = Literal["full", "half", "pairs"]
"""What keeps the sums of kernels without VNNI exact: nothing, 7 of the 8 bits, or bounded sums of neighbours."""

# VPMADDUBSW adds two products of a u8 and an s8 in 16 bits: 255 * 128 fits.
_PAIR_SUM = 128
# Shares of the range without clipping among which the one that errs least is looked for.
_SHARES = np.linspace(1.0, 0.4, 31)


@dataclass(frozen=True)
class Layout:
    """What the axes of a weight mean.

    Attributes:
        output_axis: Axis of the output channels.
        input_axis: Axis that kernels go over first when they sum; None for a table whose rows are only looked up.
    """

    output_axis: int
    input_axis: int | None

    def _order(self, rank: int) -> list[int]:
        last = [] if self.input_axis is None else [self.input_axis]
        return [self.output_axis, *(axis for axis in range(rank) if axis not in (self.output_axis, *last)), *last]

    def rows(self, values: Array) -> Array:
        """(channels, summed) values in the order in which x86 kernels sum them: all channels of a position first."""
        moved = values.transpose(self._order(values.ndim))
        return np.ascontiguousarray(moved).reshape(moved.shape[0], -1)

    def unrows(self, rows: Array, shape: tuple[int, ...]) -> Array:
        """What `rows` was made from, of the given shape."""
        order = self._order(len(shape))
        return np.ascontiguousarray(rows.reshape([shape[axis] for axis in order]).transpose(np.argsort(order)))


@dataclass(frozen=True)
class Codes:
    """weight = scales * numbers.

    Attributes:
        numbers: Of the weight's shape, int8.
        scales: (channels,), or () for one scale; float32, above 0.
        axis: Axis of the channels; None where there is one scale.
    """

    numbers: npt.NDArray[np.int8]
    scales: npt.NDArray[np.float32]
    axis: int | None

    def values(self) -> Array:
        """What the weight has become, float32."""
        if self.axis is None:
            return self.numbers * self.scales
        shape = [1] * self.numbers.ndim
        shape[self.axis] = -1
        result: Array = self.numbers * self.scales.reshape(shape)
        return result


def highest(bits: int, limit: Limit) -> int:
    """The largest number of a weight, whose negative is the lowest.

    >>> highest(8, "full"), highest(8, "half"), highest(4, "half")
    (127, 64, 7)
    """
    top = (1 << (bits - 1)) - 1
    return min(top, _PAIR_SUM // 2) if limit == "half" else top


def quantize_weight(
    weight: Array,
    layout: Layout,
    bits: int,
    limit: Limit,
    *,
    per_channel: bool,
    least_error: bool,
    lowest_scales: Array | None = None,
) -> Codes:
    """Round a weight to the nearest multiples of its scales.

    With the limit `pairs` no two neighbours along a kernel's sum, the 1st and 2nd, 3rd and 4th, …, add up to more than
    kernels without VNNI can hold. That widens a scale only where large weights of one sign lie side by side, and costs
    less than the whole bit that the limit `half` costs.

    Args:
        weight: Finite floats.
        layout: Its axes.
        bits: 2 to 8.
        limit: See `Limit`.
        per_channel: A scale for each output channel instead of one for all.
        least_error: Look for the range whose rounding and clipping together err least in the sum of squares; no effect
            where neighbours are bounded.
        lowest_scales: Scales do not go below these; (channels,), or () for one scale.
    """
    rows = layout.rows(np.asarray(weight, np.float32))
    top = highest(bits, limit)
    bounded = limit == "pairs" and top > _PAIR_SUM // 2 and layout.input_axis is not None
    reach = np.abs(rows).max(1, initial=0.0)
    if bounded:
        # Rounding adds at most a half to each of the two.
        reach = np.maximum(reach, largest_pair_sums(rows) * np.float32(top / (_PAIR_SUM - 1)))
    if not per_channel:
        reach = reach.max(keepdims=True, initial=0.0)
    scales = reach / np.float32(top)
    scales = np.where(scales > np.finfo(np.float32).tiny, scales, 1.0).astype(np.float32)
    # Where neighbours are bounded, a narrower range would have to clip what must not be clipped.
    if least_error and not bounded:
        scales = _least_error(rows, scales, top)
    if lowest_scales is not None:
        scales = np.maximum(scales, np.asarray(lowest_scales, np.float32).reshape(-1))
    numbers = np.clip(np.rint(rows / scales[:, None]), -top, top).astype(np.int8)
    axis = layout.output_axis if per_channel else None
    return Codes(layout.unrows(numbers, weight.shape), scales if per_channel else scales.reshape(()), axis)


def largest_pair_sums(rows: Array) -> Array:
    """(channels,) the largest magnitude that the positive parts, or the negative parts, of two neighbours add up to.

    Args:
        rows: (channels, summed); see `Layout.rows`.
    """
    pairs = np.pad(rows, ((0, 0), (0, rows.shape[1] % 2))).reshape(rows.shape[0], -1, 2)
    upper = np.maximum(pairs, 0).sum(2).max(1, initial=0)
    lower = np.minimum(pairs, 0).sum(2).min(1, initial=0)
    result: Array = np.maximum(upper, -lower)
    return result


def _least_error(rows: Array, scales: Array, top: int) -> Array:
    """The share of each scale whose rounding and clipping together err least."""
    best, least = scales, np.full(scales.shape, np.inf, np.float32)
    for share in _SHARES:
        tried = scales * np.float32(share)
        error = np.clip(np.rint(rows / tried[:, None]), -top, top)
        error *= tried[:, None]
        error -= rows
        found = np.einsum("ij,ij->i", error, error)
        if len(scales) == 1:
            found = found.sum(keepdims=True)
        best = np.where(found < least, tried, best)
        least = np.minimum(found, least)
    return best
