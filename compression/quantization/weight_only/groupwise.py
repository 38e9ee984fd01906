"""Codes in groups along the input axis, each group with a scale of its own. Pure functions on arrays.

A weight is seen as (stacks, inputs, columns): one output sums over `inputs`, and the other axes tell outputs apart. It
never has to be transposed for that, so what is consecutive in a file is worked on as it comes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Groups:
    """A quantized weight: scale * (code - zero point).

    Attributes:
        codes: (stacks, groups, group size, columns) uint8, from 0 to 2^bits - 1; the last group is padded.
        scales: (stacks, groups, columns), of the weight's element type.
        zero_points: (stacks, groups, columns) uint8, the codes that stand for zero.
    """

    codes: npt.NDArray[np.uint8]
    scales: Array
    zero_points: npt.NDArray[np.uint8]

    @classmethod
    def side_by_side(cls, parts: Sequence[Groups]) -> Groups:
        """The groups of weights that lie beside each other, column by column."""
        arrays = zip(*((part.codes, part.scales, part.zero_points) for part in parts), strict=True)
        return cls(*(np.concatenate(one, axis=-1) for one in arrays))

    def turned(self) -> Groups:
        """The groups of the transposed weight: stacks for columns, and columns for stacks."""
        return Groups(*(np.swapaxes(one, 0, -1) for one in (self.codes, self.scales, self.zero_points)))


@dataclass(frozen=True)
class Grid:
    """What codes can stand for: scales and zero points, (stacks, groups, 1, columns) float32.

    Attributes:
        scales: As they are stored, so that codes are rounded by the very numbers that they will be multiplied by.
        zero_points: Whole numbers from 0 to 2^bits - 1.
        bits: Of a code.
    """

    scales: Array
    zero_points: Array
    bits: int

    @property
    def top(self) -> int:
        """The largest code."""
        return (1 << self.bits) - 1

    def codes(self, blocks: Array) -> Array:
        """The nearest codes of (stacks, groups, group size, columns), as float32."""
        # Groups of zeros have the scale 0, and their code is the zero point whatever they are divided by.
        codes: Array = np.divide(blocks, np.where(self.scales == 0, np.float32(1), self.scales))
        np.rint(codes, out=codes)
        codes += self.zero_points
        np.clip(codes, 0, self.top, out=codes)
        return codes

    def values(self, codes: Array) -> Array:
        """What codes stand for."""
        centred: Array = codes - self.zero_points
        centred *= self.scales
        return centred

    def groups(self, codes: Array, dtype: npt.DTypeLike) -> Groups:
        """Codes with this grid, as they are stored."""
        scales, zero_points = self.scales[:, :, 0].astype(dtype), self.zero_points[:, :, 0].astype(np.uint8)
        return Groups(codes.astype(np.uint8), scales, zero_points)


def blocks_of(values: Array, group_size: int) -> Array:
    """(stacks, inputs, columns) as (stacks, groups, group size, columns) float32, the last group filled with zeros."""
    stacks, inputs, columns = values.shape
    padding = -inputs % group_size
    wide = values.astype(np.float32, copy=False)
    if padding:
        wide = np.pad(wide, ((0, 0), (0, padding), (0, 0)))
    return wide.reshape(stacks, -1, group_size, columns)


def grid_of(blocks: Array, bits: int, dtype: npt.DTypeLike, *, symmetric: bool) -> Grid:
    """The grid that reaches exactly as far as each group does.

    Symmetric groups have their zero point at 2^(bits-1), and the value of largest magnitude becomes code 0, at the end
    that reaches farther; its scale is negative where that value is positive. Asymmetric groups span from their lowest
    to their highest value, zero included.

    Args:
        blocks: (stacks, groups, group size, columns) float32, finite.
        bits: 2 to 8.
        dtype: The element type that scales are stored in.
        symmetric: Fix the zero point in the middle.
    """
    lowest, highest = _extremes(blocks)
    middle, top = 1 << (bits - 1), (1 << bits) - 1
    if symmetric:
        scales = stored_scales(np.where(-lowest >= highest, lowest, highest) / np.float32(-middle), dtype)
        return Grid(scales, np.full_like(scales, middle), bits)
    np.minimum(lowest, 0, out=lowest)
    np.maximum(highest, 0, out=highest)
    scales = stored_scales((highest - lowest) / np.float32(top), dtype)
    below = np.divide(-lowest, scales, out=np.zeros_like(lowest), where=scales != 0)
    return Grid(scales, np.clip(np.rint(below), 0, top), bits)


def _extremes(blocks: Array) -> tuple[Array, Array]:
    """The least and the greatest of each group, (stacks, groups, 1, columns)."""
    if blocks.shape[3] == 1:
        # NumPy takes an extreme of few neighbours number by number, and of whole rows many at a time.
        rows = np.ascontiguousarray(np.moveaxis(blocks[..., 0], 2, 0))
        return rows.min(0)[:, :, None, None], rows.max(0)[:, :, None, None]
    return blocks.min(2, keepdims=True), blocks.max(2, keepdims=True)


def stored_scales(scales: Array, dtype: npt.DTypeLike) -> Array:
    """Scales as float32 numbers that the element type `dtype` can hold."""
    stored: Array = scales.astype(dtype).astype(np.float32)
    return stored


def round_to_nearest(values: Array, bits: int, group_size: int, *, symmetric: bool) -> tuple[Groups, float]:
    """Quantize (stacks, inputs, columns), finite, to the nearest codes; see `grid_of`.

    Returns:
        The groups, and the sum of squared errors.
    """
    blocks = blocks_of(values, group_size)
    grid = grid_of(blocks, bits, values.dtype, symmetric=symmetric)
    codes = grid.codes(blocks)
    return grid.groups(codes, values.dtype), squared_error(grid, codes, blocks)


def squared_error(grid: Grid, codes: Array, blocks: Array) -> float:
    """The sum of squared differences between blocks and what their codes stand for; padding has none."""
    error = grid.values(codes)
    error -= blocks
    return float(np.vdot(error, error))


def dequantize(groups: Groups, inputs: int) -> Array:
    """The (stacks, inputs, columns) float32 weight that codes, scales and zero points stand for."""
    centred = groups.codes.astype(np.float32) - groups.zero_points[:, :, None].astype(np.float32)
    wide: Array = centred * groups.scales[:, :, None].astype(np.float32)
    stacks, _, _, columns = wide.shape
    return wide.reshape(stacks, -1, columns)[:, :inputs]


def pack(codes: npt.NDArray[np.uint8], bits: int) -> npt.NDArray[np.uint8]:
    """Codes of 2, 4 or 8 bits along the last axis in bytes, the first code in the lowest bits.

    >>> pack(np.array([[1, 2, 3]], np.uint8), 4).tolist()
    [[33, 3]]
    """
    if bits == 8:
        return codes
    each = 8 // bits
    if codes.shape[-1] % each:
        codes = np.pad(codes, [(0, 0)] * (codes.ndim - 1) + [(0, -codes.shape[-1] % each)])
    packed = codes[..., ::each].copy()
    for position in range(1, each):
        packed |= codes[..., position::each] << np.uint8(bits * position)
    return packed
