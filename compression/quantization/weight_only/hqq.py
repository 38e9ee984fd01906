"""Half-quadratic quantization: codes, scales and zero points that err least by a norm which forgives outliers.

Badri & Shaji 2023, "Half-Quadratic Quantization of Large Machine Learning Models".
"""

from __future__ import annotations

import numpy as np

from compression.quantization.weight_only.groupwise import (
    Array,
    Grid,
    Groups,
    blocks_of,
    grid_of,
    squared_error,
    stored_scales,
)

# The paper's settings. Its beta is in units of the weights; here it is in steps of the grid, which makes the solution
# of a weight that is multiplied by a number the multiplied solution.
_NORM = 0.7
_BETA = 10.0
_KAPPA = 1.01
_ROUNDS = 20
_ENOUGH = 3e-3
_TINY = np.float32(1e-12)


def quantize(values: Array, bits: int, group_size: int) -> tuple[Groups, float]:
    """Quantize (stacks, inputs, columns), finite, so that the sum of |error|^0.7 of each group is small.

    The error is split into a sparse part, found by the generalized soft threshold, and a rest, which closed forms make
    small; the two take turns. The paper keeps the scale and solves for any real zero point; the fast kernels of
    runtimes want whole ones, so here the closed form is that of a straight line through codes and values (scale and
    zero point together), and after the zero point is rounded that of the scale alone. Of all rounds, the first of
    which is the nearest codes on the grid from lowest to highest value, each group keeps its best.

    Returns:
        The groups, and the sum of squared errors.
    """
    blocks = blocks_of(values, group_size)
    grid = grid_of(blocks, bits, values.dtype, symmetric=False)
    error = _Error(blocks, grid)
    best, least = grid, error.norm
    beta = _BETA
    for _ in range(_ROUNDS):
        grid = _fitted(error.codes, blocks - error.sparse(beta), grid, values.dtype)
        error = _Error(blocks, grid)
        better = error.norm < least
        gain = float((least - error.norm)[better].sum())
        least = np.where(better, error.norm, least)
        best = Grid(
            np.where(better, grid.scales, best.scales), np.where(better, grid.zero_points, best.zero_points), bits
        )
        if gain <= _ENOUGH * float(least.sum()):
            break
        beta *= _KAPPA
    codes = best.codes(blocks)
    return best.groups(codes, values.dtype), squared_error(best, codes, blocks)


class _Error:
    """How far the nearest codes of a grid are from blocks.

    Attributes:
        codes: Those codes, as float32.
        norm: (stacks, groups, 1, columns), the sum of |error|^p of each group.
    """

    def __init__(self, blocks: Array, grid: Grid) -> None:
        self.codes = grid.codes(blocks)
        self._error = blocks - grid.values(self.codes)
        self._steps = np.abs(grid.scales)
        self._size = _quotient(np.abs(self._error), self._steps)
        # size^(p-1), by logarithms: several times faster than np.power, and |error|^p follows from it.
        self._slope = np.log(np.maximum(self._size, _TINY))
        self._slope *= np.float32(_NORM - 1)
        np.exp(self._slope, out=self._slope)
        self.norm: Array = (self._size * self._slope).sum(2, keepdims=True) * self._steps ** np.float32(_NORM)

    def sparse(self, beta: float) -> Array:
        """The part that the norm forgives: sign(e) * max(|e| - |e|^(p-1) / beta, 0), in steps of the grid."""
        kept = self._slope
        kept *= np.float32(-1 / beta)
        kept += self._size
        np.maximum(kept, 0, out=kept)
        kept *= self._steps
        sparse: Array = np.copysign(kept, self._error)
        return sparse


def _fitted(codes: Array, target: Array, grid: Grid, dtype: np.dtype[np.generic]) -> Grid:
    """The grid on which these codes come closest to the target, in the sense of least squares."""
    mean, middle = codes.mean(2, keepdims=True), target.mean(2, keepdims=True)
    spread = codes - mean
    power = np.square(spread).sum(2, keepdims=True)
    slope = _quotient((spread * (target - middle)).sum(2, keepdims=True), power)
    slope = np.where(np.abs(slope) > _TINY, slope, grid.scales)
    zero_points = np.clip(np.rint(mean - _quotient(middle, slope)), 0, grid.top)
    centred = codes - zero_points
    power = np.square(centred).sum(2, keepdims=True)
    scales = _quotient((centred * target).sum(2, keepdims=True), power)
    scales = stored_scales(np.where(np.abs(scales) > _TINY, scales, grid.scales), dtype)
    return Grid(scales, zero_points, grid.bits)


def _quotient(values: Array, divisors: Array) -> Array:
    """Quotients, 0 where there is nothing to divide by."""
    divisors = np.broadcast_to(divisors, values.shape)
    quotients: Array = np.divide(values, divisors, out=np.zeros_like(values), where=divisors != 0)
    return quotients
